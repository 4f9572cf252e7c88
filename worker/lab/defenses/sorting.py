"""Which members of a class belong elsewhere, and whether that accuses the class: the inner part of `abl_plus`."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from app.specs.defenses.abl_plus import AblPlus
from worker.lab.data.datasets import Split
from worker.lab.defenses.base import TrainingDefense
from worker.lab.defenses.signs import Signs, auroc_or_half, correlation, ranks
from worker.lab.evaluation import predict
from worker.lab.stages import Outcome, StageRun

HEAD = 0.02  # of all samples: the most suspicious, whose majority label names a class to look into
FIRST_CORE, GROWTH = 0.1, 0.1  # of a class: what is trusted at first, and how much more after every round
COMPETENT = 0.8  # recall on trusted members held out, below which the sorting model is not listened to
MANY = 0.45  # of a class: so many strange members, if they are not the slow ones, accuse by themselves
SOME = 0.25  # of a class: fewer strange members say nothing of single ones
VARIETY = (
    3.0  # classes that poison was made from, at least; members that all resemble one other are no poison
)
UNITED = 0.3  # product of a class's excess in both heads, from which on they accuse it with one voice
TWO_HEAPS = 0.78  # separability of a class; evenly spread members have 0.75, those of one heap less
END = 0.2  # of an accused class, at either end: what the splitting models learn from


def classes_to_sort(signs: Signs, labels: Tensor) -> list[int]:
    """The majority label of the head of each ranking and every class in two heaps, in order, without repeats.

    At least one class is left out, for the others are sorted beside it; what speed names goes first.
    """
    classes = labels.unique().tolist()
    heads = [int(labels[_head(sign)].mode().values) for sign in (signs.speed, signs.dominance)]
    named = dict.fromkeys([*heads, *(c for c in classes if signs.heaps(labels == c) >= TWO_HEAPS)])
    return sorted(list(named)[: len(classes) - 1])


def _head(sign: Tensor) -> Tensor:
    """Rows of the most suspicious samples by one sign."""
    return sign.argsort(descending=True, stable=True)[: max(1, round(HEAD * len(sign)))]


def sort(
    spec: AblPlus,
    lab: TrainingDefense,
    stage: StageRun,
    signs: Signs,
    suspects: list[int],
    before: Tensor | None,
    round_: int,
) -> Outcome:
    """One round of sorting the suspected classes; ``before`` is the last round's strangeness, None in the first.

    Leaves ``strangeness`` ``[N]`` (0 outside the suspected classes), ``elsewhere`` int64 ``[N]``, the other class that
    a member resembles most, and two bool ``[N]``: ``trusted``, the core of those classes, and ``held_out``, the part of
    it that the round's model has not seen.
    """
    labels = lab.labels.cpu()
    suspected = torch.isin(labels, torch.tensor(suspects))
    trusted, held_out = torch.zeros_like(suspected), torch.zeros_like(suspected)
    rows = [(~suspected).nonzero().flatten()]
    for c in suspects if before is not None else []:
        assert before is not None
        members = (labels == c).nonzero().flatten()
        core = core_of(members, before, signs, FIRST_CORE + GROWTH * (round_ - 2))
        trusted[core] = True
        # Every fifth is held out, to see how well the model knows the class.
        fifth = torch.arange(len(core)) % 5 == 4
        held_out[core[fifth]] = True
        taught = core[~fifth]
        usual = int((~suspected).sum()) / max(1, lab.facts.classes - len(suspects))
        rows.append(taught.repeat(max(1, round(usual / max(1, len(taught))))))
    network = lab.new_network(f"sorting {round_}")
    recipe = replace(lab.recipe, epochs=spec.sorting_epochs, memory={})
    lab.fit(stage, network, recipe, rows=torch.cat(rows))
    logits = predict(network, lab.images, lab.compute).cpu()
    strangeness, elsewhere = torch.zeros(len(labels)), labels.clone()
    for c in suspects:
        members = (labels == c).nonzero().flatten()
        foreign = logits[members].clone()
        foreign[:, c] = -torch.inf
        elsewhere[members] = foreign.argmax(1)
        if before is None:  # energy (Liu et al. 2020): high where the model recognizes another class
            others = [k for k in range(lab.facts.classes) if k not in suspects]
            strangeness[members] = ranks(logits[members][:, others].logsumexp(1))
        else:
            strangeness[members] = 1 - logits[members].softmax(1)[:, c]
    return stage.finish(
        {"strangeness": strangeness, "elsewhere": elsewhere, "trusted": trusted, "held_out": held_out}
    )


def core_of(members: Tensor, strangeness: Tensor, signs: Signs, share: float) -> Tensor:
    """The least suspicious ``share`` of a class: strangeness, and each sign that agrees with it."""
    score = strangeness[members].clone()
    for sign in (signs.speed, signs.dominance):
        weight = max(0.0, correlation(sign[members], strangeness[members]))
        score += weight * ranks(sign[members])
    return members[score.argsort(stable=True)[: max(2, round(share * len(members)))]]


def split(
    spec: AblPlus,
    lab: TrainingDefense,
    stage: StageRun,
    signs: Signs,
    accused: "Trial | None",
    before: Tensor | None,
    round_: int,
) -> Outcome:
    """One round of parting an accused class that the sorting models do not know.

    A model learns what tells its most suspicious members from the least suspicious ones, beside all of the other
    classes. Leaves ``evidence`` ``[n]``, its answer for each member; ``before`` is the last round's. Nothing is left
    where nothing is to be parted.
    """
    if accused is None or accused.believed:
        return stage.finish({})
    labels = lab.labels.cpu()
    members = (labels == accused.label).nonzero().flatten()
    doubt = signs.mean[members] if before is None else before.cpu()
    order = members[doubt.argsort(stable=True)]
    end = max(2, round(END * len(members)))
    innocent, suspicious = order[:end], order[-end:]
    others = (labels != accused.label).nonzero().flatten()
    # The network has no label to spare, so the innocent are filed under another class.
    filed = lab.labels.clone()
    filed[innocent.to(filed.device)] = next(int(c) for c in labels.unique() if c != accused.label)
    times = max(1, round(len(others) / max(1, lab.facts.classes - 1) / end))
    rows = torch.cat([others, innocent.repeat(times), suspicious.repeat(times)])
    network = lab.new_network(f"splitting {round_}")
    recipe = replace(lab.recipe, epochs=spec.sorting_epochs, memory={})
    lab.fit_on(stage, network, Split(lab.images, filed), recipe, rows=rows)
    answers = predict(network, lab.images[members.to(filed.device)], lab.compute).softmax(1)
    return stage.finish({"evidence": answers[:, accused.label].cpu()})


@dataclass(frozen=True)
class Trial:
    """What speaks for and against a class. All but ``label``, ``variety`` and ``guilty`` are in [0, 1]."""

    label: int
    strange: float
    """Share of the members that belong elsewhere, by the last sorting model."""
    agreement: float
    """Probability that a strange member outranks another in speed or dominance, whichever agrees better."""
    contrast: float
    """Probability that a strange member outranks a trusted one in speed or dominance, whichever says so more."""
    variety: float
    """How many other classes the strange members resemble: the exponential of the entropy of their shares."""
    recall: float
    """Share of the trusted members held out that the sorting model knows: whether it is worth asking."""
    united: float
    """Product of the class's excess in the heads of both rankings: its share there, beyond what chance gives it."""
    heaps: float
    """How far speed and dominance part the class in two."""
    sorted_out: bool
    """Whether the sorting model, by itself, accuses it."""

    @property
    def competent(self) -> bool:
        return self.recall >= COMPETENT

    @property
    def believed(self) -> bool:
        """Whether the sorting model's word counts for single members: it knows the class, finds something, and accuses
        by itself or at least finds what stands above the trusted. If the trusted stand above, it may have learned the
        poison as the class, to which the clean members then look strange."""
        against = self.sorted_out or self.contrast >= 0.5
        return self.competent and self.strange >= SOME and against

    @property
    def guilty(self) -> bool:
        return self.sorted_out or self.united >= UNITED or self.heaps >= TWO_HEAPS

    @property
    def confidence(self) -> float:
        sorted_ = min(1.0, max(self.agreement, self.strange / MANY)) if self.sorted_out else 0.0
        return max(sorted_, self.united, self.heaps)

    def __str__(self) -> str:
        return (
            f"{self.strange:.0%} of it strange, like {self.variety:.1f} other classes, agreement {self.agreement:.2f}, "
            f"trusted members known {self.recall:.0%}, named by both heads {self.united:.2f}, in two heaps "
            f"{self.heaps:.2f}: " + ("accused" if self.guilty else "not accused")
        )


def trial_of(spec: AblPlus, label: int, labels: Tensor, signs: Signs, sorting: Outcome) -> Trial:
    members = (labels == label).nonzero().flatten()
    strangeness, elsewhere, trusted, held_out = (
        sorting.tensors[name].cpu()[members] for name in ("strangeness", "elsewhere", "trusted", "held_out")
    )
    strange, outside = strangeness > 0.5, ~trusted
    recall = 1 - strange[held_out].double().mean().item() if held_out.any() else 0.0

    def outranks(some: Tensor) -> float:
        return max(
            auroc_or_half(sign[members][some], strange[some]) for sign in (signs.speed, signs.dominance)
        )

    agreement, contrast = outranks(outside), outranks(strange | trusted)
    share = strange.double().mean().item()
    united = excess(label, labels, signs.speed) * excess(label, labels, signs.dominance)
    variety, heaps = effective_number(elsewhere[strange]), signs.heaps(labels == label)
    trial = Trial(label, share, agreement, contrast, variety, recall, united, heaps, False)
    proven = share + agreement >= spec.proof or (share >= MANY and agreement >= 0.5)
    # A clean class may come in two kinds, of which one looks like another class; poison was made from many.
    several = variety >= min(VARIETY, (len(labels.unique()) - 1) / 3)
    return replace(trial, sorted_out=trial.competent and proven and several)


def effective_number(values: Tensor) -> float:
    """How many different ``values`` ``[n]`` there are, counted by their shares: the exponential of the entropy."""
    shares = values.unique(return_counts=True)[1].double() / max(1, len(values))
    return float(torch.exp(-(shares * shares.log()).sum()))


def excess(label: int, labels: Tensor, sign: Tensor) -> float:
    """By how much a class is too common in the head of a ranking: 0 at its share of all samples, 1 if alone there."""
    of_head, of_all = ((some == label).double().mean().item() for some in (labels[_head(sign)], labels))
    return max(0.0, (of_head - of_all) / (1 - of_all)) if of_all < 1 else 0.0


def evidence_of(strangeness: Tensor, signs: Signs) -> Tensor:
    """How much speaks against each member ``[n]`` of a class: strangeness, and each sign as far as it agrees."""
    total, weights = strangeness.clone(), 1.0
    for sign in (signs.speed, signs.dominance):
        weight = max(0.0, correlation(sign, strangeness))
        total, weights = total + weight * sign, weights + weight
    return total / weights
