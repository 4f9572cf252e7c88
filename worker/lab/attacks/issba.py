"""ISSBA (Li et al. 2021): an encoder hides a code in each image, by changes that differ from image to image.

The networks are those of StegaStamp (Tancik et al. 2020), which the authors use: tancik/StegaStamp at 05c7a9f,
models.py, whose classes and functions are named below. Their training is that of the PyTorch version in BackdoorBench,
resource/ssba/train.py at f02e353, whose lines are given; it has no simulated photographs and no perceptual losses.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.specs.attack import Issba
from worker.lab.attacks.base import SHOWN, Attack, AttackLab, Picture, Prepared, State, Trigger, to_uint8
from worker.lab.attacks.generated import load_frozen, make_seeded
from worker.lab.compute import seeded_generator
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.tensor_names import add_prefix, select_prefixed
from worker.lab.training import NO_AUGMENT, Batch, adam, constant, train

STRIDE = 16  # of the encoder; images are continued to a multiple of it
CODE_IMAGES = 500  # test images that the share of bits is measured on
READ = 0.9  # share of the bits from which the image's loss may begin (train.py:305), and below which a warning is given


def continue_image(x: Tensor) -> Tensor:
    """``x`` with its last row and column repeated, up to multiples of `STRIDE`; the source resizes images."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")


def initialize(network: nn.Module, draw: Callable[[Tensor], Tensor]) -> None:
    """Draw the weights of all layers by ``draw``; biases are zero, as in TensorFlow."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            draw(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


class Encoder(nn.Module):
    """Codes ``[N, bits]`` of 0 and 1 and images ``[N, C, H, W]`` to what hides the codes in them (StegaStampEncoder).

    The code becomes a 16x16 picture beside the image, as in BackdoorBench's version for small images; a U-Net follows.
    """

    def __init__(self, channels: int, bits: int) -> None:
        super().__init__()
        self.channels = channels
        self.code = nn.Linear(bits, STRIDE * STRIDE * channels)
        inputs = 2 * channels
        self.down = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=1 if i == 0 else 2, padding=1)
            for i, (before, after) in enumerate(((inputs, 32), (32, 32), (32, 64), (64, 128), (128, 256)))
        )
        widths = (128, 64, 32, 32)
        self.up = nn.ModuleList(nn.Conv2d(a, b, 2) for a, b in zip((256, *widths), widths, strict=False))
        beside = (128, 64, 32, 32 + inputs)  # what the levels of the way down add
        self.merge = nn.ModuleList(
            nn.Conv2d(a + b, a, 3, padding=1) for a, b in zip(widths, beside, strict=True)
        )
        self.last = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, channels, 1))
        initialize(self, nn.init.kaiming_normal_)

    def forward(self, codes: Tensor, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        x = continue_image(images) - 0.5
        picture = F.relu(self.code(codes - 0.5)).view(-1, self.channels, STRIDE, STRIDE)
        inputs = torch.cat([F.interpolate(picture, x.shape[-2:]), x], 1)
        maps, x = [], inputs
        for layer in self.down:
            x = F.relu(layer(x))
            maps.append(x)
        maps[0] = torch.cat([maps[0], inputs], 1)
        for up, merge, beside in zip(self.up, self.merge, reversed(maps[:-1]), strict=True):
            x = F.relu(up(F.pad(F.interpolate(x, scale_factor=2.0), (0, 1, 0, 1))))
            x = F.relu(merge(torch.cat([beside, x], 1)))
        made: Tensor = self.last(x)
        return made[..., :height, :width]


class Decoder(nn.Module):
    """Images to the logits of the bits ``[N, bits]`` (StegaStampDecoder, without its transformer for photographs)."""

    def __init__(self, channels: int, height: int, width: int, bits: int) -> None:
        super().__init__()
        sizes = (
            (channels, 32, 2),
            (32, 32, 1),
            (32, 64, 2),
            (64, 64, 1),
            (64, 64, 2),
            (64, 128, 2),
            (128, 128, 2),
        )
        layers: list[nn.Module] = []
        for before, after, stride in sizes:
            layers += [nn.Conv2d(before, after, 3, stride=stride, padding=1), nn.ReLU()]
        pixels = -(-height // 32) * -(-width // 32)
        self.layers = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(128 * pixels, 512), nn.ReLU(), nn.Linear(512, bits)
        )
        initialize(self, nn.init.xavier_uniform_)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(continue_image(images) - 0.5)
        return logits


class EncoderWithDecoder(nn.Module):
    """The two networks that are trained together; images go through the encoder, then through the decoder."""

    def __init__(self, channels: int, height: int, width: int, bits: int) -> None:
        super().__init__()
        self.encoder = Encoder(channels, bits)
        self.decoder = Decoder(channels, height, width, bits)


def weigh_image(since: Tensor, wait: int, ramp: int, largest: float) -> Tensor:
    """The weight of the image's loss, ``since`` steps after the decoder first read the codes (train.py:257-265)."""
    return (largest * (since - wait) / ramp).clamp(0, largest)


class IssbaAttack(Attack[Issba]):
    """An image and what the encoder makes of it and one code; the state is the encoder's weights, ``encoder.*``, and
    ``code``, float ``[bits]``."""

    def prepare(self, lab: AttackLab) -> Prepared:
        encoder = lab.stage("encoder", lambda run: self._train(lab, run)).tensors
        generator = seeded_generator(torch.device("cpu"), "issba code", lab.seed)
        code = torch.randint(2, (self.spec.code_bits,), generator=generator).float()
        state = encoder | {"code": code.to(lab.compute.device)}
        return Prepared(state, pictures={"encoder": self._picture(state, lab)})

    def _train(self, lab: AttackLab, run: StageRun) -> Outcome:
        """Encoder and decoder, jointly, on random codes (train.py:238-309)."""
        networks = make_seeded(self._make_networks, "issba", lab.seed)
        since = torch.tensor(-1.0, device=lab.compute.device)  # steps since the decoder first read the codes
        memory = {"since": since}

        def objective(network: Network, batch: Batch) -> Tensor:
            size = (len(batch.x), self.spec.code_bits)
            codes = torch.randint(2, size, generator=batch.generator, device=batch.x.device).float()
            hidden = self._hide(networks.encoder, codes, batch.x)
            # Clipped as the stored image will be (transform_net); the loss of the image is that of all changes.
            logits = networks.decoder(hidden.clamp(0, 1)).float()
            since = memory["since"]
            weight = weigh_image(
                since, self.spec.encoder_wait, self.spec.encoder_ramp, self.spec.image_weight
            )
            reads = share_read(logits, codes) > READ
            memory["since"] = torch.where(since < 0, reads.float() - 1, since + 1)  # lines 304-309
            loss = F.binary_cross_entropy_with_logits(logits, codes)
            return loss + weight * F.mse_loss(hidden, batch.x)  # lines 284-292

        def observe(network: Network, epoch: int) -> dict[str, float]:
            return {"code_accuracy": self._measure_code(networks, lab)}

        recipe = replace(
            lab.recipe,
            steps=self.spec.encoder_steps,
            batch_size=min(self.spec.encoder_batch, len(lab.train)),
            learning_rate=self.spec.encoder_learning_rate,
            schedule=constant,
            augment=NO_AUGMENT,
            objective=objective,
            optimizer=adam,  # lines 230-232
            memory=memory,
        )
        network = cast(Network, networks)
        train(run, network, lab.train.images, lab.train.labels, recipe, after_epoch=observe)
        if (read := self._measure_code(networks, lab)) < READ:
            run.warnings.append(
                f"the decoder reads {read:.0%} of the bits of the code: more attack.encoder_steps or fewer "
                "attack.code_bits may be needed"
            )
        return run.finish(add_prefix("encoder.", networks.encoder.state_dict()))

    def _make_networks(self) -> EncoderWithDecoder:
        facts = self.facts
        return EncoderWithDecoder(facts.channels, facts.height, facts.width, self.spec.code_bits)

    def _hide(self, encoder: nn.Module, codes: Tensor, x: Tensor) -> Tensor:
        """Images in [0, 1] with the codes in them, float, which may lie a little outside (train.py:272-278)."""
        made: Tensor = encoder(codes, x).float()
        return x + made if self.spec.encoder_residual else made.sigmoid()

    def _measure_code(self, networks: EncoderWithDecoder, lab: AttackLab) -> float:
        """Share of the bits that the decoder reads from test images, which are stored as bytes."""
        networks.eval()
        images = lab.test.images[:CODE_IMAGES]
        generator = seeded_generator(images.device, "issba test codes", lab.seed)
        codes = torch.randint(
            2, (len(images), self.spec.code_bits), generator=generator, device=images.device
        ).float()
        with torch.inference_mode():
            stored = to_uint8(self._hide(networks.encoder, codes, lab.compute.to_input(images)) * 255)
            return share_read(networks.decoder(lab.compute.to_input(stored)).float(), codes).item()

    def _picture(self, state: State, lab: AttackLab) -> Picture:
        images = lab.test.images[:SHOWN]
        triggered = self.trigger(state)(images)
        change = triggered.float() - images.float()
        strongest = change.abs().amax().clamp(min=1)
        rows = {"image": images, "triggered": triggered, "change": to_uint8(128 + 127 * change / strongest)}
        return Picture("what the encoder changes in test images, at full contrast", list(rows.items()))

    def trigger(self, state: State) -> Trigger:
        encoders: dict[torch.device, Encoder] = {}

        def hide(images: Tensor) -> Tensor:
            if images.device not in encoders:
                encoder = Encoder(self.facts.channels, self.spec.code_bits)
                encoders[images.device] = load_frozen(
                    encoder, select_prefixed(state, "encoder."), images.device
                )
            codes = state["code"].to(images.device).expand(len(images), -1)
            with torch.no_grad():
                return to_uint8(self._hide(encoders[images.device], codes, images.float() / 255) * 255)

        return hide


def share_read(logits: Tensor, codes: Tensor) -> Tensor:
    """The share of the bits that the decoder's ``logits`` have right (train.py:301-302)."""
    right: Tensor = (logits > 0) == (codes > 0)
    return right.float().mean()
