"""The removal test: is a part of a class foreign to it? A model that never saw that part says so.

It is trained without the part, and without some of the class's other members, which are held out. A clean member that
is left out is still given its label, because the rest of the class explains it. A mislabeled or perturbed one is not:
nothing but the poison itself taught its label. Held-out members show how often the same model recognizes genuine ones.

Where the poison is what was kept, the clean part is not recognized either. The two differ in what the model says
instead: poison made from images of many classes is given these classes as surely as their genuine members are; and a
trigger outlasts other images that are added to it.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worker.lab.compute import derive_seed
from worker.lab.defenses.base import TrainingDefense
from worker.lab.defenses.signs import auroc_or_half
from worker.lab.evaluation import predict_logits
from worker.lab.stages import Outcome, StageRun

HELD_OUT_SHARE = 0.25  # of the members that are not flagged
MIN_HELD_OUT = 5  # fewer say little about how often genuine members are recognized
MAX_KNOWN_RATIO = 0.5
"""Of the flagged members' recognition to that of held-out ones; poison is below it."""
SURE = 0.1
"""Quantile of the probabilities of genuine members: what is surer is surely of the class that it is given."""
MIN_FOREIGN = 0.1
"""Share of flagged members that are surely of other classes."""
MIN_VARIETY = 3.0
"""Other classes that these are given. A clean class may have a second kind that resembles one other class."""
MIN_DOMINANCE = 0.9
"""In place of the two above: a perturbed image is still of its own class, so other classes do not claim it."""
MIN_WIDESPREAD, WIDESPREAD = 3, 0.5
"""Number and share of the classes that confirm each other if all of them have an unexplained side, as in an all-to-all
attack."""


@dataclass(frozen=True)
class ClassParts:
    """Parts of a class, bool ``[N]`` each, on the CPU."""

    label: int
    members: Tensor
    """The whole class."""
    flagged: Tensor
    held_out: Tensor
    """A quarter of the others."""
    near: Tensor
    """The half of the others that is nearest to the flagged. Some of it may be poison that was missed, which would
    teach the model the trigger, and it would recognize the flagged by it."""

    @property
    def kept(self) -> Tensor:
        """Members that the model of the test is trained on."""
        return self.members & ~(self.flagged | self.held_out | self.near)


def split_class(label: int, flagged: Tensor, doubt: Tensor, labels: Tensor, seed: int) -> ClassParts:
    """Divide class ``label`` of ``labels`` ``[N]``, some members of which are ``flagged``, bool ``[N]``.

    The others are nearer the higher their ``doubt`` ``[N]``; those that are held out are drawn by the seed.
    """
    members = labels == label
    others = (members & ~flagged).nonzero().flatten()
    held_out, near = torch.zeros_like(flagged), torch.zeros_like(flagged)
    generator = torch.Generator().manual_seed(derive_seed("removal", seed))
    drawn = torch.randperm(len(others), generator=generator)[: math.ceil(HELD_OUT_SHARE * len(others))]
    held_out[others[drawn]] = True
    near[others[doubt[others].argsort(descending=True, stable=True)[: len(others) // 2]]] = True
    return ClassParts(label, members, flagged, held_out, near)


def train_without(lab: TrainingDefense, stage: StageRun, parts: list[ClassParts]) -> Outcome:
    """Train a model by the experiment's recipe on what is kept of some classes, and on all others.

    What is kept of a class is repeated to the size that the class had, so that the model knows it as well as others.
    Leaves its predictions, int64 ``[N]``, and their probabilities ``[N]``.
    """
    untouched = torch.ones(len(lab.labels), dtype=torch.bool)
    rows = []
    for of_class in parts:
        kept = of_class.kept.nonzero().flatten()
        rows.append(kept.repeat(max(1, round(int(of_class.members.sum()) / max(1, len(kept))))))
        untouched &= ~of_class.members
    network = lab.new_network("victim")
    lab.fit(
        stage, network, replace(lab.recipe, memory={}), rows=torch.cat([untouched.nonzero().flatten(), *rows])
    )
    chances, predicted = predict_logits(network, lab.images, lab.compute).softmax(1).max(1)
    return stage.finish({"predicted": predicted.cpu(), "chances": chances.cpu()})


@dataclass(frozen=True)
class Removal:
    """What a model that never saw them says about the flagged and the held-out members of a class."""

    label: int
    known: float
    """Share of the flagged members that are given their label."""
    known_held_out: float
    """The same of the held-out members."""
    foreign: float
    """Share of the flagged members that are given another label as surely as held-out members are given theirs."""
    variety: float
    """Effective number of labels that these are given."""
    dominance: float
    """Probability that a flagged member keeps its label more surely than another member when images are added to it."""
    held_out: int
    """How many members were held out."""

    @property
    def is_unexplained(self) -> bool:
        """Whether the rest of the class does not explain the flagged members."""
        return self.held_out >= MIN_HELD_OUT and self.known < MAX_KNOWN_RATIO * self.known_held_out

    def is_foreign(self, classes: int) -> bool:
        """Whether they are also the foreign side of the class, of ``classes`` in all."""
        varied = self.variety >= min(MIN_VARIETY, (classes - 1) / 3)
        return self.is_unexplained and (
            (self.foreign >= MIN_FOREIGN and varied) or self.dominance >= MIN_DOMINANCE
        )

    def __str__(self) -> str:
        return (
            f"a model that was trained without them gives {self.known:.0%} of them that label, and "
            f"{self.known_held_out:.0%} of the other images of the class that it has not seen; {self.foreign:.0%} are "
            f"surely of other classes ({self.variety:.1f} of them), and the probability that one keeps its label under "
            f"overlays more surely than another image of the class is {self.dominance:.2f}"
        )


def judge_removals(
    parts: list[ClassParts], labels: Tensor, predicted: Tensor, chances: Tensor, dominance: Tensor
) -> list[Removal]:
    """The numbers of the test for each class; all tensors are ``[N]``, see `train_without` and `measure_signs`."""
    right = predicted == labels
    genuine = right.clone()
    # Of a divided class only held-out members are surely unseen and not of the flagged kind.
    for of_class in parts:
        genuine &= of_class.held_out | ~of_class.members
    # How surely genuine members of a class are given it; above any probability where there are none.
    sure = torch.full((int(max(labels.max(), predicted.max())) + 1,), 2.0)
    for label in labels[genuine].unique().tolist():
        sure[label] = chances[genuine & (labels == label)].quantile(SURE)

    def share(part: Tensor, of: Tensor) -> float:
        return part[of].double().mean().item() if of.any() else 0.0

    def judge(of_class: ClassParts) -> Removal:
        foreign = of_class.flagged & ~right & (chances >= sure[predicted])
        return Removal(
            label=of_class.label,
            known=share(right, of_class.flagged),
            known_held_out=share(right, of_class.held_out),
            foreign=share(foreign, of_class.flagged),
            variety=effective_number(predicted[foreign]),
            dominance=auroc_or_half(dominance[of_class.members], of_class.flagged[of_class.members]),
            held_out=int(of_class.held_out.sum()),
        )

    return [judge(of_class) for of_class in parts]


def find_poisoned(smaller: list[Removal], larger: list[Removal], classes: int) -> list[Removal]:
    """The sides that are poison; both lists have a removal for each divided class, in the same order.

    At most one side of a class is: where both seem foreign, the one that dominates more.
    """
    unexplained = [removal for removal in smaller if removal.is_unexplained]
    if len(unexplained) >= max(MIN_WIDESPREAD, WIDESPREAD * classes):
        return unexplained
    poisoned = []
    for sides in zip(smaller, larger, strict=True):
        foreign = [side for side in sides if side.is_foreign(classes)]
        poisoned += sorted(foreign, key=lambda side: side.dominance)[-1:]
    return poisoned


def effective_number(values: Tensor) -> float:
    """Effective number of different ``values`` ``[n]``: the exponential of the entropy of their shares; 0 if none."""
    shares = values.unique(return_counts=True)[1].double() / max(1, len(values))
    return float(torch.exp(-(shares * shares.log()).sum())) if len(values) else 0.0
