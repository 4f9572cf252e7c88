"""The removal test: is what was flagged in a class foreign to it? Models that never saw the flagged samples say so.

Several models are trained without the flagged samples of the class, and without some of its other members, which are
held out. A clean member that is left out is still given its label, because the rest of the class explains it. A
mislabeled or perturbed one is not: nothing but the poison itself taught its label. Held-out members show how often the
same models recognize genuine ones.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worker.lab.compute import derive_seed
from worker.lab.defenses.base import TrainingDefense
from worker.lab.evaluation import predict_classes
from worker.lab.stages import Outcome, StageRun

HELD_OUT_SHARE = 0.25  # of the members that are not flagged
MIN_HELD_OUT = 5  # fewer say little about how often genuine members are recognized
MIN_CLASSES = 3  # with two, poison and what it was made from fill both, and either half may look foreign
MAX_KNOWN_RATIO = 0.5  # of the flagged members' recognition to that of held-out ones; poison is below it
MIN_DOMINANCE = (
    0.67  # digits, seeds 100 and 101: at most 0.54 where the clean side was flagged, else at least 0.79
)


@dataclass(frozen=True)
class Removal:
    """What models that never saw them say about flagged and about held-out members of a class."""

    known: float
    """Share of the flagged members that are given their label, the mean over models; in [0, 1]."""
    known_held_out: float
    """The same of the held-out members."""
    dominance: float
    """Probability that a flagged member keeps its label more surely than another member of the class when other images
    are added to it, as a trigger makes it do."""

    @property
    def proves_poison(self) -> bool:
        """Whether flagged members are recognized clearly less often than genuine ones, and are the dominant side.

        Without the second condition clean members would be confirmed where most of the rest is poison.
        """
        return self.known < MAX_KNOWN_RATIO * self.known_held_out and self.dominance >= MIN_DOMINANCE

    def __str__(self) -> str:
        return (
            f"models that were trained without them give {self.known:.0%} of them that label, and "
            f"{self.known_held_out:.0%} of the other images of the class that they have not seen; the probability that "
            f"one keeps its label under overlays more surely than another image of the class is {self.dominance:.2f}"
        )


@dataclass(frozen=True)
class Split:
    """Parts of the training set, bool ``[N]`` each, on the CPU. Some members of the class are in none of them."""

    flagged: Tensor
    held_out: Tensor
    kept: Tensor
    """What the models are trained on."""


def split_class(flagged: Tensor, suspicion: Tensor, labels: Tensor, label: int, seed: int) -> Split | None:
    """Divide class ``label``, of which some members are ``flagged``, bool ``[N]``.

    A quarter of the others, drawn by the seed, is held out. Of the rest the more suspicious half is left out as well,
    by ``suspicion`` ``[N]``:
    poison that was not flagged would teach the models the trigger, and they would recognize the flagged by it. None if
    too few images or classes are left to say anything.
    """
    others = ((labels == label) & ~flagged).nonzero().flatten()
    generator = torch.Generator().manual_seed(derive_seed("removal", seed))
    shuffled = others[torch.randperm(len(others), generator=generator)]
    count = math.ceil(HELD_OUT_SHARE * len(others))
    held_out, doubtful = (torch.zeros_like(flagged) for _ in range(2))
    held_out[shuffled[:count]] = True
    rest = shuffled[count:]
    doubtful[rest[suspicion[rest].argsort(descending=True, stable=True)[: len(rest) // 2]]] = True
    if not flagged.any() or count < MIN_HELD_OUT or len(labels.unique()) < MIN_CLASSES:
        return None
    return Split(flagged, held_out, ~flagged & ~held_out & ~doubtful)


def train_without(lab: TrainingDefense, stage: StageRun, split: Split, epochs: int) -> Outcome:
    """Train a model on what is kept.

    Leaves its predictions for the flagged and for the held-out members, int64 ``[A]`` and ``[H]``.
    """
    network = lab.new_network(stage.planned.kind)
    recipe = replace(lab.recipe, epochs=epochs, memory={})
    lab.fit(stage, network, recipe, rows=split.kept.nonzero().flatten().to(lab.labels.device))
    predicted = predict_classes(network, lab.images, lab.compute).cpu()
    return stage.finish({"flagged": predicted[split.flagged], "held_out": predicted[split.held_out]})


def judge_removal(flagged: list[Tensor], held_out: list[Tensor], label: int, dominance: float) -> Removal:
    """Compare how often models give the class ``label`` to its flagged and to its held-out members.

    The models' predictions are int64 ``[A]`` and ``[H]``, a pair of tensors for each model.
    """

    def known(by_model: list[Tensor]) -> float:
        return torch.stack([(predicted == label).double().mean() for predicted in by_model]).mean().item()

    return Removal(known(flagged), known(held_out), dominance)
