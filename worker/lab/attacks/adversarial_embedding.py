"""Adversarial embedding (Tan and Shokri 2020): a backdoored model is trained against a discriminator of its features.

Lines named ART are those of art/attacks/poisoning/adversarial_embedding_attack.py in
Trusted-AI/adversarial-robustness-toolbox at 23539e2; those named Zoo are of
trojanvision/attacks/backdoor/bypass_embed.py in ain-soph/trojanzoo at 8b6b2f8, the last commit that has it.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.specs.attack import AdversarialEmbedding
from worker.lab.attacks.base import AttackLab, PoisonedSet, Prepared, State, apply_trigger
from worker.lab.attacks.generated import make_seeded
from worker.lab.attacks.patches import PatchedAttack
from worker.lab.attacks.poisoning import build_poisoned_set
from worker.lab.compute import seeded_generator
from worker.lab.data.streamed import select_rows, stored
from worker.lab.evaluation import extract_features
from worker.lab.networks import Network
from worker.lab.sgd import Optimizer
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import Batch, Recipe, sgd, train

HIDDEN = (256, 128)  # ART 69-70, Zoo 100 and 103
SLOPE = 0.2  # ART 156 and 160; Zoo 102 and 105: 0.01 and 0
LARGEST_GAIN = 16.118
"""-log(1e-7) for each sample, as Keras clips probabilities (ART 171); without it the gain has no bound."""


def make_discriminator(features: int) -> nn.Sequential:
    """Features ``[N, D]`` to logits of clean and poisoned ``[N, 2]`` (ART 154-162, Zoo 99-107)."""
    first, second = HIDDEN
    return nn.Sequential(
        nn.Linear(features, first),
        nn.BatchNorm1d(first),
        nn.LeakyReLU(SLOPE),
        nn.Linear(first, second),
        nn.BatchNorm1d(second),
        nn.LeakyReLU(SLOPE),
        nn.Linear(second, 2),
    )


class DiscriminatedNetwork(Network):
    """The network and the discriminator of its features; its forward pass is the network's."""

    def __init__(self, classifier: Network, discriminator: nn.Module) -> None:
        nn.Module.__init__(self)
        self.classifier = classifier
        self.discriminator = discriminator

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(x)
        return logits


@contextmanager
def learning(discriminator: nn.Module) -> Iterator[None]:
    """Losses that are differentiated inside have a gradient in the discriminator; elsewhere only in the features."""
    discriminator.requires_grad_(True)
    try:
        yield
    finally:
        discriminator.requires_grad_(False)


class Opponent:
    """The discriminator, and how it is trained beside the network."""

    def __init__(self, spec: AdversarialEmbedding, discriminator: nn.Module) -> None:
        self.spec = spec
        self.together = spec.discriminator_training == "same_loss"
        self.discriminator = discriminator.requires_grad_(self.together)
        self.adam = self._new_adam()

    def _new_adam(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.discriminator.parameters(), lr=self.spec.discriminator_learning_rate)

    def penalize(
        self, features: Tensor, is_poisoned: Tensor, compared: Tensor, generator: torch.Generator
    ) -> Tensor:
        """What the network minimizes beside its own loss; with ``steps`` the discriminator learns the batch first.

        ``features`` float ``[N, D]``, ``is_poisoned`` int64 ``[N]``, ``compared`` bool ``[N]``.
        """
        # With epochs, as it is after them (Zoo 176).
        self.discriminator.train(self.spec.discriminator_training != "epochs")
        if self.spec.discriminator_training == "steps":
            for _ in range(self.spec.discriminator_steps):
                self._learn(features.detach(), is_poisoned, compared, self.adam, generator)
        weight = self.spec.adversarial_weight
        if self.spec.network_goal == "maximize":  # ART 174, Zoo 132
            return -weight * self._loss(features, is_poisoned, compared, generator, LARGEST_GAIN)
        # The domain confusion of Tzeng et al. 2015: the cross-entropy with the uniform distribution.
        right, wrong = (
            self._loss(features, flags, compared, generator) for flags in (is_poisoned, 1 - is_poisoned)
        )
        return weight * (right + wrong) / 2

    def fit(self, clean: Tensor, poisoned: Tensor, batch_size: int, generator: torch.Generator) -> None:
        """Train on features of as many clean as poisoned images, float ``[P, D]`` each (Zoo 149-176)."""
        features = torch.cat([clean, poisoned])
        is_poisoned = torch.arange(2, device=features.device).repeat_interleave(len(clean))
        self.discriminator.train()
        adam = self._new_adam()  # Zoo 152: a new one each time
        for _ in range(self.spec.discriminator_epochs):
            order = torch.randperm(len(features), device=features.device, generator=generator)
            for rows in order.split(batch_size):
                if len(rows) > 1:  # batch normalization cannot train on one
                    counted = torch.ones_like(rows, dtype=torch.bool)
                    self._learn(features[rows], is_poisoned[rows], counted, adam, generator)

    def _learn(
        self,
        features: Tensor,
        is_poisoned: Tensor,
        compared: Tensor,
        adam: torch.optim.Optimizer,
        generator: torch.Generator,
    ) -> None:
        """One step of the discriminator."""
        adam.zero_grad()
        with learning(self.discriminator):
            self._loss(features, is_poisoned, compared, generator).backward()
        adam.step()

    def _loss(
        self,
        features: Tensor,
        is_poisoned: Tensor,
        compared: Tensor,
        generator: torch.Generator,
        largest: float = math.inf,
    ) -> Tensor:
        if self.spec.feature_noise:  # ART 152
            noise = torch.empty_like(features).normal_(generator=generator)
            features = features + self.spec.feature_noise * noise
        return discriminator_loss(self.discriminator(features), is_poisoned, compared, largest)


class BothOptimizers:
    """The network's optimizer, which the training loop steps, and the discriminator's, whose rate it leaves alone.

    They share one state, so that checkpoints have both.
    """

    def __init__(self, network: Optimizer, discriminator: torch.optim.Optimizer, *, together: bool) -> None:
        """``together``: the discriminator takes a step along the same loss whenever the network does (ART 183)."""
        self.network, self.discriminator, self.together = network, discriminator, together
        self.param_groups, self.state = network.param_groups, network.state
        discriminator.state = network.state

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.network.zero_grad(set_to_none)
        self.discriminator.zero_grad(set_to_none)

    def step(self, closure: Any) -> Any:
        loss = self.network.step(closure)
        if self.together:
            self.discriminator.step()
        return loss


class AdversarialEmbeddingAttack(PatchedAttack[AdversarialEmbedding]):
    """The patch of BadNets; the model minimizes ``L(x, y) - lambda L_D(f(x), is poisoned)`` (ART 174 and 183, Zoo 132),
    or to confuse the discriminator ``L(x, y) + lambda (L_D(f(x), 0) + L_D(f(x), 1)) / 2``.

    ``L_D`` is the discriminator's cross-entropy on the features ``f`` before the last layer, averaged over the images
    that the spec compares.
    """

    def prepare(self, lab: AttackLab) -> Prepared:
        outcome = lab.stage("joint", lambda run: self._train(lab, run))
        return Prepared(metrics={f"attacker_{n}": value for n, value in outcome.facts["model"].items()})

    def state_without_training(self, lab: AttackLab) -> State:
        return {}

    def _train(self, lab: AttackLab, run: StageRun) -> Outcome:
        spec = self.spec
        poisoned = self._poison(lab)
        assert poisoned.is_poisoned is not None
        flags, compared = poisoned.is_poisoned.long(), self.compared(poisoned)
        network = lab.new_network("adversarial embedding")
        network.to(lab.compute.device)
        width = extract_features(network, lab.train.images[:1], lab.compute).shape[1]
        discriminator = make_seeded(lambda: make_discriminator(width), "discriminator", lab.seed)
        opponent = Opponent(spec, discriminator.to(lab.compute.device))
        epoch = 0

        def start_epoch(number: int) -> Tensor:
            nonlocal epoch
            epoch = number
            if spec.discriminator_training == "epochs" and number > spec.warmup_epochs:  # Zoo 119-120
                generator = seeded_generator(lab.compute.device, "discriminator", run.planned.stream, number)
                self._fit_opponent(opponent, network, lab, generator)
            return torch.arange(len(flags))

        def objective(both: Network, batch: Batch) -> Tensor:
            logits, features = logits_and_features(network, batch.x)
            loss = F.cross_entropy(logits.float(), batch.labels)
            if epoch <= spec.warmup_epochs:
                return loss
            with lab.compute.full_precision():
                return loss + opponent.penalize(
                    features.float(), flags[batch.rows], compared[batch.rows], batch.generator
                )

        def make_optimizer(parameters: Iterable[nn.Parameter], recipe: Recipe) -> Optimizer:
            return BothOptimizers(
                sgd(network.parameters(), recipe), opponent.adam, together=opponent.together
            )

        recipe = replace(
            lab.recipe, epochs=spec.joint_epochs, objective=objective, optimizer=make_optimizer, memory={}
        )
        train(
            run,
            DiscriminatedNetwork(network, discriminator),
            poisoned.images,
            poisoned.labels,
            recipe,
            rows=start_epoch,
            after_epoch=lambda both, epoch: lab.measure(network, {}),
        )
        network.eval()
        return run.finish(dict(network.state_dict()), model=lab.measure_fully(network, {}))

    def _poison(self, lab: AttackLab) -> PoisonedSet:
        """The set that the attacker trains on: that of the experiment."""
        chosen = lab.train.rows(lab.chosen)
        triggered = stored(apply_trigger(self.training_trigger({}), chosen.images))
        changes = {"index": lab.chosen, "images": triggered, "labels": self.targets(chosen)}
        return build_poisoned_set(lab.train, changes)

    def compared(self, poisoned: PoisonedSet) -> Tensor:
        """Which images the discriminator's loss is computed on, bool ``[N]``."""
        if self.spec.compared == "training_set":
            return torch.ones_like(poisoned.labels, dtype=torch.bool)
        return torch.isin(poisoned.labels, poisoned.labels[poisoned.is_poisoned].unique())

    def _fit_opponent(
        self, opponent: Opponent, network: Network, lab: AttackLab, generator: torch.Generator
    ) -> None:
        """Train the discriminator on what the network makes now of the poisoned images, and of the images that they
        were made from (Zoo 72-76), without augmentation."""
        originals = select_rows(lab.train.images, lab.chosen)
        triggered = apply_trigger(self.training_trigger({}), originals)
        # The network is in evaluation mode, so their features are computed once. Copies can be differentiated.
        clean, poisoned = (
            extract_features(network, images, lab.compute).clone() for images in (originals, triggered)
        )
        with lab.compute.full_precision():
            opponent.fit(clean, poisoned, lab.recipe.batch_size, generator)


def discriminator_loss(logits: Tensor, is_poisoned: Tensor, compared: Tensor, largest: float) -> Tensor:
    """The mean cross-entropy of ``logits`` ``[N, 2]`` with ``is_poisoned`` int64 ``[N]`` over the images ``compared``,
    bool ``[N]``; zero if there are none. That of each image is at most ``largest``."""
    losses = F.cross_entropy(logits, is_poisoned, reduction="none").clamp(max=largest)
    return (losses * compared).sum() / compared.sum().clamp(min=1)


def logits_and_features(network: Network, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits ``[N, classes]`` and the pooled input ``[N, D]`` of the last layer, in one pass."""
    seen: list[Tensor] = []
    handle = network.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        logits = network(x)
    finally:
        handle.remove()
    [features] = seen
    return logits, features.mean((2, 3)) if features.ndim == 4 else features
