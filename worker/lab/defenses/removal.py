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
from operator import attrgetter

import torch
from torch import Tensor

from worker.lab.compute import derive_seed
from worker.lab.defenses.base import TrainingDefense
from worker.lab.defenses.signs import BIMODAL, auroc_or_half, find_judged, otsu_threshold, separability
from worker.lab.evaluation import predict_logits
from worker.lab.stages import Outcome, StageRun

MIN_DIVIDED = 3  # some clean classes are as separable as a class with warped poison, so rank alone misses it
HELD_OUT_SHARE = 0.25  # of the members that are not flagged
MIN_HELD_OUT = 5  # fewer say little about how often genuine members are recognized
MAX_KNOWN_RATIO = 0.5
"""Of the flagged members' recognition to that of held-out ones; poison is below it."""
SURE = 0.1
"""Quantile of the probabilities of genuine members: what is surer is surely of the class that it is given."""
MIN_CLAIMING = 1.0
"""Of `Removal.claiming`. Where it was set, on CIFAR-10, sides of clean classes are at most at 0.7."""
MIN_FOREIGN = 0.1
"""Share of flagged members that are surely of other classes."""
MIN_VARIETY = 3.0
"""Other classes that these are given. A clean class may have a second kind that resembles one other class."""
MIN_DOMINANCE = 0.85
"""In place of the two above: a perturbed image is still of its own class, so other classes do not claim it."""
MIN_LEARNED = 0.9
"""Share of the held-out members of a dominant side that a model which knows the others of it gives their label. A
trigger is learned as a whole; a kind of clean images is not."""
MIN_WIDESPREAD, WIDESPREAD = 3, 0.5
"""Number and share of the classes that confirm each other if neither side of any of them explains the other, as in an
all-to-all attack."""


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

    doubt: Tensor
    """How near members are to the flagged ones, ``[N]``; higher is nearer."""
    is_bimodal: bool
    """Whether the sign divides the class more than it would by chance."""

    @property
    def kept(self) -> Tensor:
        """Members that the model of the test is trained on."""
        return self.members & ~(self.flagged | self.held_out | self.near)


def split_classes(sign: Tensor, labels: Tensor, seed: int, *, smaller: bool) -> list[ClassParts]:
    """Divide classes at Otsu's threshold of ``sign`` ``[N]``, and flag the ``smaller`` side of each.

    These are the bimodal ones, and if they are fewer than `MIN_DIVIDED`, the next most separable. ``labels`` int64
    ``[N]``; the ``seed`` draws the members that are held out.
    """
    parts = []
    found = {label: separability(sign[labels == label]) for label in find_judged(labels)}
    least = min([BIMODAL, *sorted(found.values(), reverse=True)[:MIN_DIVIDED]])
    for label in (label for label, value in found.items() if value >= least):
        members = labels == label
        high = members & (sign > otsu_threshold(sign[members]))
        flag_high = (int(high.sum()) <= int(members.sum()) / 2) == smaller
        flagged = high if flag_high else members & ~high
        doubt = sign if flag_high else -sign
        parts.append(split_class(label, flagged, doubt, labels, seed, is_bimodal=found[label] >= BIMODAL))
    return parts


def split_class(
    label: int, flagged: Tensor, doubt: Tensor, labels: Tensor, seed: int, *, is_bimodal: bool
) -> ClassParts:
    """The parts of class ``label`` of ``labels`` ``[N]`` if some of its members are ``flagged``, bool ``[N]``."""
    members = labels == label
    others = (members & ~flagged).nonzero().flatten()
    held_out, near = torch.zeros_like(flagged), torch.zeros_like(flagged)
    generator = torch.Generator().manual_seed(derive_seed("removal", seed))
    drawn = torch.randperm(len(others), generator=generator)[: math.ceil(HELD_OUT_SHARE * len(others))]
    held_out[others[drawn]] = True
    near[others[doubt[others].argsort(descending=True, stable=True)[: len(others) // 2]]] = True
    return ClassParts(label, members, flagged, held_out, near, doubt, is_bimodal)


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
    claiming: float
    """How many other classes claim the flagged members: `variety` times `foreign`, of those that are given another
    label more surely than half of its genuine members are."""
    held_out: int
    """How many members were held out."""
    is_bimodal: bool
    """Whether the sign divides the class more than it would by chance."""

    @property
    def is_unexplained(self) -> bool:
        """Whether the rest of the class does not explain the flagged members."""
        return self.held_out >= MIN_HELD_OUT and self.known < MAX_KNOWN_RATIO * self.known_held_out

    @property
    def claimed(self) -> float:
        """Share of the flagged members that is surely of other classes than the most frequent of these (taking them to
        be equally frequent)."""
        return self.foreign * (1 - 1 / self.variety) if self.variety else 0.0

    def is_foreign(self, classes: int) -> bool:
        """Whether other classes claim the flagged members, and enough of them, of ``classes`` in all."""
        return self.foreign >= MIN_FOREIGN and self.variety >= min(MIN_VARIETY, classes / 2)

    def __str__(self) -> str:
        return (
            f"a model that was trained without them gives {self.known:.0%} of them that label, and "
            f"{self.known_held_out:.0%} of the other images of the class that it has not seen; {self.foreign:.0%} are "
            f"surely of other classes ({self.variety:.1f} of them; {self.claiming:.1f} claim them more surely than "
            "half of their own images), and the probability that one keeps its label under overlays more surely than "
            f"another image of the class is {self.dominance:.2f}"
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
    sure, surer = torch.full((2, int(max(labels.max(), predicted.max())) + 1), 2.0)
    for label in labels[genuine].unique().tolist():
        of_label = chances[genuine & (labels == label)]
        sure[label], surer[label] = of_label.quantile(SURE), of_label.median()

    def share(part: Tensor, of: Tensor) -> float:
        return part[of].double().mean().item() if of.any() else 0.0

    def judge(of_class: ClassParts) -> Removal:
        foreign = of_class.flagged & ~right & (chances >= sure[predicted])
        claimed = foreign & (chances >= surer[predicted])
        return Removal(
            label=of_class.label,
            known=share(right, of_class.flagged),
            known_held_out=share(right, of_class.held_out),
            foreign=share(foreign, of_class.flagged),
            variety=effective_number(predicted[foreign]),
            dominance=auroc_or_half(dominance[of_class.members], of_class.flagged[of_class.members]),
            claiming=share(claimed, of_class.flagged) * effective_number(predicted[claimed]),
            held_out=int(of_class.held_out.sum()),
            is_bimodal=of_class.is_bimodal,
        )

    return [judge(of_class) for of_class in parts]


def find_poisoned(removals: list[Removal], classes: int) -> list[Removal]:
    """Those of the ``removals`` whose flagged members are poison, in a set of ``classes`` classes.

    Poison is a side that the rest of its class does not explain. The first rule that applies to a class decides:

    1. Neither side explains the other, and enough other classes claim one: it is poison.
    2. A side dominates: it is poison if it is learned.
    3. Neither side explains the other, and the class is bimodal: the stronger side is poison if it is foreign.

    Where one side is explained, the other has two kinds: if poison is divided, one part of it explains the other, and
    what is left unexplained are the clean members. In a widespread attack poison is the first unexplained side of each
    class, whatever the rules say.
    """
    by_class: dict[int, list[Removal]] = {}
    for removal in removals:
        by_class.setdefault(removal.label, []).append(removal)
    sides = {label: [one for one in both if one.is_unexplained] for label, both in by_class.items()}
    of_two_kinds = [of_class for of_class in sides.values() if len(of_class) > 1]
    bimodal = sum(of_class[0].is_bimodal for of_class in of_two_kinds)
    if bimodal >= max(MIN_WIDESPREAD, WIDESPREAD * classes):
        return [of_class[0] for of_class in sides.values() if of_class]
    poisoned = []
    for label, of_class in sides.items():
        two_kinds = len(of_class) > 1
        # The dominances of two sides add up to 1, so at most one dominates.
        dominant = [side for side in of_class if side.dominance >= MIN_DOMINANCE]
        if two_kinds and (claimed := max(of_class, key=attrgetter("claiming"))).claiming >= MIN_CLAIMING:
            poisoned.append(claimed)
        elif dominant:
            poisoned += [side for side in dominant if is_learned(side, by_class[label])]
        elif (
            two_kinds
            and of_class[0].is_bimodal
            and (stronger := choose_stronger(*of_class)).is_foreign(classes)
        ):
            poisoned.append(stronger)
    return poisoned


def is_learned(side: Removal, both: list[Removal]) -> bool:
    """Whether a model that knows a part of a side recognizes the rest. The other removal holds out members of it."""
    return all(one.known_held_out >= MIN_LEARNED for one in both if one is not side)


def choose_stronger(one: Removal, other: Removal) -> Removal:
    """Of the two sides of a class, the one with more of the dominance and of what other classes claim together.

    Each of the two adds up to 1 over both sides: dominances do, and claims are divided by their sum.
    """
    claims = one.claimed + other.claimed
    lead = one.dominance - other.dominance + ((one.claimed - other.claimed) / claims if claims else 0.0)
    return one if lead >= 0 else other


def effective_number(values: Tensor) -> float:
    """Effective number of different ``values`` ``[n]``: the exponential of the entropy of their shares; 0 if none."""
    shares = values.unique(return_counts=True)[1].double() / max(1, len(values))
    return float(torch.exp(-(shares * shares.log()).sum())) if len(values) else 0.0
