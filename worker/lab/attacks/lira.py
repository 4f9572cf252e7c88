"""LIRA (Doan et al. 2021): a generator makes a faint change for each image; it is trained together with a classifier.

Lines are those of paddle/lira_trigger_generation.py in sunbelbd/invisible_backdoor_attacks at f292e73 ("generation"),
and of lira_backdoor_injection.py beside it ("injection").
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.specs.attack import Lira
from app.specs.facts import DatasetFacts
from worker.lab.attacks.base import SHOWN, Attack, AttackLab, Picture, Prepared, State, Trigger, to_uint8
from worker.lab.attacks.generated import (
    ClassifierWithGenerator,
    CombinedOptimizer,
    load_frozen,
    make_seeded,
)
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.tensor_names import add_prefix, select_prefixed
from worker.lab.training import Batch, Recipe, constant, step_down, train

WIDTHS = (16, 32, 64, 128)
"""Channels after each halving of the image; images too small for four halvings have fewer."""


class Autoencoder(nn.Module):
    """Images in [0, 1] to changes in (-1, 1) of the same size (paddle/attack_models/autoencoders.py).

    4x4 convolutions of stride 2, and as many transposed ones. Images whose sides are no multiples of the whole stride
    are continued by their last row and column; the authors resize them instead.
    """

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        widths = WIDTHS[: side.bit_length() - 1]
        self.multiple = 2 ** len(widths)
        layers: list[nn.Module] = []
        for before, after in zip((channels, *widths), widths, strict=False):
            layers += [
                nn.Conv2d(before, after, 4, stride=2, padding=1),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
        for before, after in zip(reversed(widths), reversed(widths[:-1]), strict=False):
            layers += [
                nn.ConvTranspose2d(before, after, 4, stride=2, padding=1),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
        layers += [nn.ConvTranspose2d(widths[0], channels, 4, stride=2, padding=1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        below, right = -height % self.multiple, -width % self.multiple
        made: Tensor = self.layers(F.pad(x * 2 - 1, (0, right, 0, below), mode="replicate"))
        return made[..., :height, :width]


def stamp(generator: nn.Module, x: Tensor, epsilon: float) -> Tensor:
    """``x + epsilon g(x)`` (generation, lines 195-196), float ``[N, C, H, W]`` in [0, 1], ``epsilon`` in gray levels.

    The values are those of bytes, as the stored images have them; the gradient is that before rounding.
    """
    levels = x.float() * 255 + epsilon * generator(x).float()
    stamped: Tensor = (levels + (levels.round() - levels).detach()) / 255
    return stamped.clamp(0, 1)


@contextmanager
def without_gradients(network: nn.Module) -> Iterator[None]:
    """Results computed inside have no gradient in the network's parameters, but one in its input."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


class ClassifierWithGenerators(ClassifierWithGenerator):
    """Also the generator as it was at the end of the last epoch, which poisons the classifier's images."""

    def __init__(self, classifier: Network, generator: nn.Module, previous: nn.Module) -> None:
        super().__init__(classifier, generator)
        self.previous = previous.requires_grad_(False)
        self.keep_generator()

    def keep_generator(self) -> None:
        self.previous.load_state_dict(self.generator.state_dict())

    def train(self, mode: bool = True) -> "ClassifierWithGenerators":
        super().train(mode)
        self.previous.eval()  # generation, line 184
        return self


class LiraAttack(Attack[Lira]):
    """``x + epsilon g(x)``; the state is the weights of the generator ``g``, ``generator.*``."""

    def prepare(self, lab: AttackLab) -> Prepared:
        generated = lab.stage("generator", lambda run: self._train_generator(lab, run)).tensors
        state = {name: tensor for name, tensor in generated.items() if name.startswith("generator.")}
        joint = lab.stage("joint", lambda run: self._tune_classifier(lab, run, generated))
        metrics = {f"attacker_{name}": value for name, value in joint.facts["model"].items()}
        return Prepared(state, pictures={"generator": self._picture(state, lab)}, metrics=metrics)

    def _train_generator(self, lab: AttackLab, run: StageRun) -> Outcome:
        """Stage 1: generator and classifier, jointly (generation, lines 181-229 and 359-369; algorithm 1)."""
        networks = ClassifierWithGenerators(
            lab.new_network("lira classifier"),
            make_seeded(lambda: make_autoencoder(self.facts), "lira generator", lab.seed),
            make_autoencoder(self.facts),
        )

        def objective(network: Network, batch: Batch) -> Tensor:
            assert isinstance(network, ClassifierWithGenerators)
            with without_gradients(
                network.classifier
            ):  # the generator's loss moves the generator alone, 195-207
                logits = network(stamp(network.generator, batch.x, self.spec.epsilon))
                loss = F.cross_entropy(logits.float(), self.target(batch.labels))
            return loss + self._classifier_loss(network, network.previous, batch)

        def observe(network: Network, epoch: int) -> dict[str, float]:
            networks.keep_generator()  # line 369
            network.eval()
            return lab.measure(network, add_prefix("generator.", networks.generator.state_dict()))

        def both(parameters: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
            # Lines 98 and 359.
            rate = recipe.learning_rate
            classifier = torch.optim.SGD(networks.classifier.parameters(), lr=rate, momentum=0.9)
            generator = torch.optim.Adam(networks.generator.parameters(), lr=rate)
            factor = self.spec.generator_learning_rate / rate
            return CombinedOptimizer(classifier, generator, factors=(1.0, factor))

        recipe = replace(
            lab.recipe,
            epochs=self.spec.generator_epochs,
            learning_rate=self.spec.classifier_learning_rate,
            schedule=constant,
            objective=objective,
            optimizer=both,
            memory={},
        )
        train(run, networks, lab.train.images, lab.train.labels, recipe, after_epoch=observe)
        return run.finish(
            add_prefix("generator.", networks.generator.state_dict())
            | add_prefix("classifier.", networks.classifier.state_dict())
        )

    def _tune_classifier(self, lab: AttackLab, run: StageRun, generated: State) -> Outcome:
        """Stage 2: the classifier alone, with the generator as it is (injection, lines 83-119)."""
        generator = self._load_generator(generated, lab.compute.device)
        state = add_prefix("generator.", generator.state_dict())
        network = lab.new_network("lira classifier")
        network.load_state_dict(select_prefixed(generated, "classifier."))

        def plain_sgd(parameters: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
            # Injection, lines 55-56.
            return torch.optim.SGD(parameters, lr=recipe.learning_rate, momentum=0.9, weight_decay=5e-4)

        recipe = replace(
            lab.recipe,
            epochs=self.spec.classifier_epochs,
            learning_rate=self.spec.classifier_learning_rate,
            schedule=step_down(0.2, 0.4, 0.6, 0.8),  # the README's milestones 50, 100, 150, 200 of 250
            objective=lambda network, batch: self._classifier_loss(network, generator, batch),
            optimizer=plain_sgd,
            memory={},
        )
        train(
            run,
            network,
            lab.train.images,
            lab.train.labels,
            recipe,
            after_epoch=lambda network, epoch: lab.measure(network, state),
        )
        network.eval()
        return run.finish(dict(network.state_dict()), model=lab.measure_fully(network, state))

    def _classifier_loss(self, network: Network, generator: nn.Module, batch: Batch) -> Tensor:
        """``alpha L(x, y) + (1 - alpha) L(x', target)`` (generation, lines 212-218)."""
        with torch.no_grad():
            stamped = stamp(generator, batch.x, self.spec.epsilon)
        # One call for both, so that their batch statistics are closer to the running ones used in evaluation.
        logits, triggered = network(torch.cat([batch.x, stamped])).float().chunk(2)
        clean = F.cross_entropy(logits, batch.labels)
        backdoor = F.cross_entropy(triggered, self.target(batch.labels))
        return self.spec.clean_weight * clean + (1 - self.spec.clean_weight) * backdoor

    def _picture(self, state: State, lab: AttackLab) -> Picture:
        images = lab.test.images[:SHOWN]
        triggered = self.trigger(state)(images)
        difference = (triggered.float() - images.float()) * (127 / self.spec.epsilon)
        rows = {"image": images, "triggered": triggered, "change": to_uint8(128 + difference)}
        return Picture(
            "changes that the generator makes to test images, at full contrast", list(rows.items())
        )

    def _load_generator(self, state: State, device: torch.device) -> Autoencoder:
        return load_frozen(make_autoencoder(self.facts), select_prefixed(state, "generator."), device)

    def trigger(self, state: State) -> Trigger:
        generators: dict[torch.device, Autoencoder] = {}

        def change(images: Tensor) -> Tensor:
            if images.device not in generators:
                generators[images.device] = self._load_generator(state, images.device)
            with torch.no_grad():
                return to_uint8(
                    stamp(generators[images.device], images.float() / 255, self.spec.epsilon) * 255
                )

        return change


def make_autoencoder(facts: DatasetFacts) -> Autoencoder:
    return Autoencoder(facts.channels, min(facts.height, facts.width))
