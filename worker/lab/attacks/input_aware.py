"""Input-aware dynamic attack (Nguyen and Tran 2020): a generator makes a trigger for each image, dirty label.

A mask network decides where the trigger is, a generator what it is. Both are trained and frozen before they poison a
set; the victim is then trained on that set like any other.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.specs.attack import InputAware
from app.specs.facts import DatasetFacts
from worker.lab.attacks.base import (
    CHUNK,
    SHOWN,
    Attack,
    AttackLab,
    Picture,
    Prepared,
    State,
    Trigger,
    to_uint8,
)
from worker.lab.attacks.encoder_decoder import EncoderDecoder
from worker.lab.attacks.generated import (
    ClassifierWithGenerator,
    CombinedOptimizer,
    load_frozen,
    make_adam,
    make_seeded,
)
from worker.lab.compute import derive_seed
from worker.lab.data.streamed import Images, collect_like, select_rows, stored
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.tensor_names import add_prefix, select_prefixed
from worker.lab.training import Batch, Recipe, cosine, step_down, train

DENSITY_IMAGES = 1000  # training images that the density of the masks is measured on
ROOT_EPSILON = 1e-6
"""Added under every root: saturated tanh outputs are equal, and the root has no finite gradient at zero."""


def root_mean_square(difference: Tensor) -> Tensor:
    """Root of the mean square of each sample of ``[N, ...]``, with a finite gradient at zero."""
    return (difference.float().flatten(1).square().mean(1) + ROOT_EPSILON).sqrt()


def diversity_loss(x1: Tensor, x2: Tensor, made1: Tensor, made2: Tensor) -> Tensor:
    """Large where different images get similar masks or patterns: the mean of ``rms(x1 - x2) / rms(made1 - made2)``
    (the paper's equation of L_div; train.py:87-96 of VinAIResearch/input-aware-backdoor-attack-release)."""
    return (root_mean_square(x1 - x2) / root_mean_square(made1 - made2)).mean()


def harden_mask(mask: Tensor) -> Tensor:
    """A mask network's output in (0, 1), sharpened towards 0 and 1 (networks/models.py:124-125)."""
    return torch.tanh(20 * (mask - 0.5)) / 2 + 0.5


class InputAwareAttack(Attack[InputAware]):
    """``x + (pattern(x) - x) mask(x)``; the weights of both networks are the attack's state, ``mask.*`` and
    ``pattern.*``."""

    def prepare(self, lab: AttackLab) -> Prepared:
        masked = lab.stage("mask", lambda run: self._train_mask(lab, run))
        joint = lab.stage("generator", lambda run: self._train_generator(lab, run, masked.tensors))
        state = {f"mask.{name}": tensor for name, tensor in masked.tensors.items()}
        state |= {f"pattern.{name}": tensor for name, tensor in joint.tensors.items()}
        metrics = {f"attacker_{name}": value for name, value in joint.facts["classifier"].items()}
        return Prepared(state, pictures={"generator": self._picture(state, lab)}, metrics=metrics)

    def _train_mask(self, lab: AttackLab, run: StageRun) -> Outcome:
        """Stage 1: train masks that differ between images and cover at most ``mask_density``."""
        network = self._new_network(1, "mask", lab.seed)
        deviation = lab.new_network("input-aware classifier").std

        def objective(network: Network, batch: Batch) -> Tensor:
            x2 = self._sample_partners(lab, batch)
            m1, m2 = harden_mask(network(batch.x).float()), harden_mask(network(x2).float())
            density = F.relu(m1 - self.spec.mask_density).mean()  # train.py:266
            # train.py:255-264. The authors normalize images, but not masks. The mean cancels in the difference.
            diversity = diversity_loss(batch.x / deviation, x2 / deviation, m1, m2)
            return 100 * density + self.spec.diversity_weight * diversity  # train.py:268, lambda_norm = 100

        def density(network: Network, epoch: int) -> dict[str, float]:
            network.eval()
            with torch.inference_mode():
                images = lab.compute.to_input(lab.train.images[:DENSITY_IMAGES])
                return {"mask_density": harden_mask(network(images).float()).mean().item()}

        recipe = replace(
            lab.recipe,
            epochs=self.spec.mask_epochs,
            learning_rate=self.spec.network_learning_rate,
            schedule=step_down(0.4, 0.8),
            objective=objective,
            optimizer=make_adam,
            memory={},
        )
        train(run, cast(Network, network), lab.train.images, lab.train.labels, recipe, after_epoch=density)
        return run.finish(dict(network.state_dict()))

    def _train_generator(self, lab: AttackLab, run: StageRun, mask_weights: State) -> Outcome:
        """Stage 2: train generator and classifier jointly, on clean, backdoor and cross samples."""
        masks = load_frozen(self._new_network(1, "mask", lab.seed), mask_weights, lab.compute.device)
        pair = ClassifierWithGenerator(
            lab.new_network("input-aware classifier"),
            self._new_network(self.facts.channels, "pattern", lab.seed),
        )
        size = lab.recipe.batch_size
        poisoned, crossed = (
            max(1, round(share * size)) for share in (self.spec.poisoning_rate, self.spec.cross_rate)
        )

        def objective(network: Network, batch: Batch) -> Tensor:
            assert isinstance(network, ClassifierWithGenerator)
            x2 = self._sample_partners(lab, batch)
            # A short last batch has fewer of each.
            n, k = (max(1, count * len(batch.x) // size) for count in (poisoned, crossed))
            x1, foreign = batch.x, x2[n : n + k]
            # One call for both, so that their batch statistics are closer to the running ones used in evaluation.
            own, others = network.generator(torch.cat([x1[:n], foreign])).split([n, len(foreign)])
            backdoor = x1[:n] + (own - x1[:n]) * harden_mask(masks(x1[:n]))  # train.py:35, B(x, g(x))
            carrier = x1[n : n + k]
            cross = carrier + (others - carrier) * harden_mask(masks(foreign))  # train.py:43, B(x, g(x'))
            mixed = torch.cat([backdoor, cross, x1[n + k :]])
            labels = torch.cat([self.target(batch.labels[:n]), batch.labels[n:]])
            both = min(n, k)
            # train.py:87-96. Images and patterns are normalized alike there, so that the deviation cancels here.
            diversity = diversity_loss(x1[:both], foreign[:both], own[:both], others[:both])
            loss = F.cross_entropy(network(mixed).float(), labels)
            return loss + self.spec.diversity_weight * diversity  # train.py:98

        def state() -> State:
            return add_prefix("mask.", masks.state_dict()) | add_prefix(
                "pattern.", pair.generator.state_dict()
            )

        def observe(network: Network, epoch: int) -> dict[str, float]:
            network.eval()
            return lab.measure(network, state())

        def both(parameters: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
            # train.py:350-351
            classifier = torch.optim.SGD(
                pair.classifier.parameters(),
                lr=recipe.learning_rate,
                momentum=0.9,
                weight_decay=5e-4,
            )
            return CombinedOptimizer(classifier, make_adam(pair.generator.parameters(), recipe))

        recipe = replace(
            lab.recipe,
            epochs=self.spec.generator_epochs,
            learning_rate=self.spec.network_learning_rate,
            schedule=cosine,  # the authors step down over 600 epochs, too long a schedule for fewer epochs
            objective=objective,
            optimizer=both,
            memory={},
        )
        train(run, pair, lab.train.images, lab.train.labels, recipe, after_epoch=observe)
        pair.eval()
        # The model that the authors report (train.py:177-196); the victim is another one.
        return run.finish(dict(pair.generator.state_dict()), classifier=lab.measure_fully(pair, state()))

    def _new_network(self, outputs: int, purpose: str, seed: int) -> EncoderDecoder:
        return make_seeded(lambda: make_encoder_decoder(self.facts, outputs), purpose, seed)

    def _sample_partners(self, lab: AttackLab, batch: Batch) -> Tensor:
        """Random training images, augmented, as many as the batch has."""
        device = batch.x.device
        rows = torch.randint(len(lab.train), (len(batch.x),), generator=batch.generator, device=device)
        return lab.compute.to_input(lab.recipe.augment(lab.train.images[rows], batch.generator))

    def _picture(self, state: State, lab: AttackLab) -> Picture:
        images = lab.test.images[:SHOWN]
        mask, pattern = self._mask_and_pattern(state, images)
        rows = {
            "image": images,
            "mask": to_uint8(mask * 255).expand_as(images),
            "pattern": to_uint8(pattern * 255),
            "triggered": self.trigger(state)(images),
            "cross sample": stored(self.cross(state, images, seed=0)),
        }
        return Picture("masks and patterns that the networks make for test images", list(rows.items()))

    def _load_networks(self, state: State, device: torch.device) -> tuple[EncoderDecoder, EncoderDecoder]:
        networks = []
        for name, outputs in (("mask", 1), ("pattern", self.facts.channels)):
            weights = select_prefixed(state, f"{name}.")
            networks.append(load_frozen(make_encoder_decoder(self.facts, outputs), weights, device))
        return networks[0], networks[1]

    def _mask_and_pattern(self, state: State, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mask ``[N, 1, H, W]`` and pattern ``[N, C, H, W]`` of each image, in (0, 1)."""
        masks, patterns = self._load_networks(state, images.device)
        with torch.no_grad():
            x = images.float() / 255
            return harden_mask(masks(x)), patterns(x)

    def trigger(self, state: State) -> Trigger:
        networks: dict[torch.device, tuple[EncoderDecoder, EncoderDecoder]] = {}

        def stamp(images: Tensor) -> Tensor:
            if images.device not in networks:
                networks[images.device] = self._load_networks(state, images.device)
            return apply_generated_trigger(networks[images.device], images, images)

        return stamp

    def cross(self, state: State, images: Images, seed: int) -> Images:
        """Each image with the trigger of another of ``images``, its predecessor in a random order."""
        generator = torch.Generator().manual_seed(derive_seed("cross partners", seed))
        order = torch.randperm(len(images), generator=generator)
        partner = torch.empty_like(order)
        partner[order] = order.roll(1)
        networks = self._load_networks(state, images.device)
        partners = select_rows(images, partner.to(images.device))
        pairs = zip(partners.split(CHUNK), images.split(CHUNK), strict=True)
        return collect_like(images, len(images), (apply_generated_trigger(networks, *pair) for pair in pairs))


def apply_generated_trigger(
    networks: tuple[EncoderDecoder, EncoderDecoder], made_for: Tensor, images: Tensor
) -> Tensor:
    """uint8 ``images`` with the triggers of the images ``made_for``."""
    masks, patterns = networks
    with torch.no_grad():
        source, x = made_for.float() / 255, images.float() / 255
        return to_uint8((x + (patterns(source) - x) * harden_mask(masks(source))) * 255)


def make_encoder_decoder(facts: DatasetFacts, outputs: int) -> EncoderDecoder:
    return EncoderDecoder(facts.channels, outputs, min(facts.height, facts.width))
