"""The class-level part of `abl_plus`: which members of a class are mislabeled, and whether the class is flagged."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from app.specs.defenses.abl_plus import AblPlus
from worker.lab.data.datasets import Split
from worker.lab.data.streamed import select_rows
from worker.lab.defenses.base import TrainingDefense
from worker.lab.defenses.signs import Signs, auroc_or_half, rank_correlation, unit_ranks
from worker.lab.evaluation import predict_logits
from worker.lab.stages import Outcome, StageRun

TOP_SHARE = 0.02  # of all samples: the most suspicious, whose majority class becomes a candidate
FIRST_CORE, GROWTH = 0.1, 0.1  # of a class: the trusted share at first, and its growth with every round
MIN_RECALL = 0.8  # on held-out trusted members; below it the classifier of a sorting round is ignored
MAJOR_SHARE = (
    0.45  # of a class: so large a strange share is sufficient if those members are not the slow ones
)
MIN_STRANGE_SHARE = 0.25  # of a class: below it strangeness does not separate single members
MIN_VARIETY = 3.0  # classes that the strange members resemble; poison is made from many classes
MIN_JOINT_EXCESS = 0.3  # product of a class's excess at the top of both rankings that flags it
BIMODAL = 0.78  # separability from which a class counts as bimodal; a uniform distribution has 0.75
TAIL_SHARE = 0.2  # of a flagged class, at either end: the training samples of a splitting round


def candidate_classes(signs: Signs, labels: Tensor) -> list[int]:
    """The majority class at the top of each ranking, and every bimodal class; sorted, without repeats.

    At least one class is left out, since a sorting round trains candidates beside other classes. If all would be
    candidates, the majority class by speed is kept first.
    """
    classes = labels.unique().tolist()
    at_top = [int(labels[_top_rows(sign)].mode().values) for sign in (signs.speed, signs.dominance)]
    candidates = dict.fromkeys([*at_top, *(c for c in classes if signs.bimodality(labels == c) >= BIMODAL)])
    return sorted(list(candidates)[: len(classes) - 1])


def _top_rows(sign: Tensor) -> Tensor:
    """Rows of the most suspicious samples by one sign."""
    return sign.argsort(descending=True, stable=True)[: max(1, round(TOP_SHARE * len(sign)))]


def run_sorting_round(
    spec: AblPlus,
    lab: TrainingDefense,
    stage: StageRun,
    signs: Signs,
    candidates: list[int],
    before: Tensor | None,
    round_: int,
) -> Outcome:
    """Train a classifier on trusted members of the candidate classes and on all other classes.

    ``before`` is the last round's strangeness, None in the first round. Leaves ``strangeness`` ``[N]`` (0 outside the
    candidate classes), ``elsewhere`` int64 ``[N]``, the other class that a member resembles most, and two bool
    ``[N]``: ``trusted``, the core of the candidate classes, and ``held_out``, the part of it that this round's
    classifier was not trained on.
    """
    labels = lab.labels.cpu()
    in_candidates = torch.isin(labels, torch.tensor(candidates))
    trusted, held_out = torch.zeros_like(in_candidates), torch.zeros_like(in_candidates)
    # In the first round no member is trusted yet: the classifier never sees the candidate classes.
    rows = [(~in_candidates).nonzero().flatten()]
    for c in candidates if before is not None else []:
        assert before is not None
        members = (labels == c).nonzero().flatten()
        core = trusted_core(members, before, signs, FIRST_CORE + GROWTH * (round_ - 2))
        trusted[core] = True
        # Every fifth is held out, to measure how well the classifier recognizes the class.
        fifth = torch.arange(len(core)) % 5 == 4
        held_out[core[fifth]] = True
        training = core[~fifth]
        # Repeated to the size of an average class, so that class sizes are balanced.
        average_size = int((~in_candidates).sum()) / max(1, lab.facts.classes - len(candidates))
        rows.append(training.repeat(max(1, round(average_size / max(1, len(training))))))
    network = lab.new_network(f"sorting {round_}")
    recipe = replace(lab.recipe, epochs=spec.sorting_epochs, memory={})
    lab.fit(stage, network, recipe, rows=torch.cat(rows))
    logits = predict_logits(network, lab.images, lab.compute).cpu()
    strangeness, elsewhere = torch.zeros(len(labels)), labels.clone()
    for c in candidates:
        members = (labels == c).nonzero().flatten()
        foreign = logits[members].clone()
        foreign[:, c] = -torch.inf
        elsewhere[members] = foreign.argmax(1)
        if (
            before is None
        ):  # energy score (Liu et al. 2020): high where the classifier recognizes another class
            others = [k for k in range(lab.facts.classes) if k not in candidates]
            strangeness[members] = unit_ranks(logits[members][:, others].logsumexp(1))
        else:
            strangeness[members] = 1 - logits[members].softmax(1)[:, c]
    return stage.finish(
        {"strangeness": strangeness, "elsewhere": elsewhere, "trusted": trusted, "held_out": held_out}
    )


def trusted_core(members: Tensor, strangeness: Tensor, signs: Signs, share: float) -> Tensor:
    """Rows of the least suspicious ``share`` of a class, by strangeness plus each sign that agrees with it."""
    score = strangeness[members].clone()
    for sign in (signs.speed, signs.dominance):
        weight = max(0.0, rank_correlation(sign[members], strangeness[members]))
        score += weight * unit_ranks(sign[members])
    return members[score.argsort(stable=True)[: max(2, round(share * len(members)))]]


def run_splitting_round(
    spec: AblPlus,
    lab: TrainingDefense,
    stage: StageRun,
    signs: Signs,
    flagged: "ClassEvidence | None",
    before: Tensor | None,
    round_: int,
) -> Outcome:
    """Separate the members of a flagged class where strangeness does not.

    A classifier learns to tell its most suspicious members from its least suspicious ones, beside all other classes.
    Leaves ``evidence`` ``[n]``, the probability of each member to be of the suspicious kind; ``before`` is that of the
    last round. Leaves nothing if no class is flagged or strangeness separates its members.
    """
    if flagged is None or flagged.separates_members:
        return stage.finish({})
    labels = lab.labels.cpu()
    members = (labels == flagged.label).nonzero().flatten()
    suspicion = signs.mean[members] if before is None else before.cpu()
    order = members[suspicion.argsort(stable=True)]
    count = max(2, round(TAIL_SHARE * len(members)))
    innocent, suspicious = order[:count], order[-count:]
    others = (labels != flagged.label).nonzero().flatten()
    # The network has no output to spare, so the innocent members are trained under the label of another class.
    relabeled = lab.labels.clone()
    relabeled[innocent.to(relabeled.device)] = next(int(c) for c in labels.unique() if c != flagged.label)
    times = max(1, round(len(others) / max(1, lab.facts.classes - 1) / count))
    rows = torch.cat([others, innocent.repeat(times), suspicious.repeat(times)])
    network = lab.new_network(f"splitting {round_}")
    recipe = replace(lab.recipe, epochs=spec.sorting_epochs, memory={})
    lab.fit_on(stage, network, Split(lab.images, relabeled), recipe, rows=rows)
    probabilities = predict_logits(
        network, select_rows(lab.images, members.to(relabeled.device)), lab.compute
    ).softmax(1)
    return stage.finish({"evidence": probabilities[:, flagged.label].cpu()})


@dataclass(frozen=True)
class ClassEvidence:
    """Whether a class is poisoned. All numbers but ``label`` and ``variety`` are in [0, 1]."""

    label: int
    strange_share: float
    """Share of the members with a strangeness above 0.5 in the last sorting round."""
    agreement: float
    """Probability that a strange member outranks another untrusted one, by the sign that agrees better."""
    contrast: float
    """Probability that a strange member outranks a trusted one, by the sign for which it is higher."""
    variety: float
    """Effective number of other classes that the strange members resemble."""
    recall: float
    """Share of the held-out trusted members that the classifier recognizes."""
    joint_excess: float
    """Product of the class's excess at the top of both rankings, see `excess_at_top`."""
    bimodality: float
    """See `Signs.bimodality`."""
    flagged_by_sorting: bool
    """Whether the sorting rounds alone flag the class."""

    @property
    def reliable(self) -> bool:
        """Whether the classifier knows the class well enough to be used."""
        return self.recall >= MIN_RECALL

    @property
    def separates_members(self) -> bool:
        """Whether strangeness may be used for single members.

        The classifier must be reliable, find enough strange members, and either flag the class by itself or find
        members that rank above the trusted ones. If the trusted ones rank above, it may have learned the poison as
        the class, and then it is the clean members that are strange.
        """
        above_trusted = self.flagged_by_sorting or self.contrast >= 0.5
        return self.reliable and self.strange_share >= MIN_STRANGE_SHARE and above_trusted

    @property
    def flagged(self) -> bool:
        """Whether the class is taken to be poisoned; any one of three criteria is sufficient."""
        return self.flagged_by_sorting or self.joint_excess >= MIN_JOINT_EXCESS or self.bimodality >= BIMODAL

    @property
    def confidence(self) -> float:
        """The strongest of the three criteria, by which the flagged class is chosen."""
        by_sorting = (
            min(1.0, max(self.agreement, self.strange_share / MAJOR_SHARE))
            if self.flagged_by_sorting
            else 0.0
        )
        return max(by_sorting, self.joint_excess, self.bimodality)

    def __str__(self) -> str:
        return (
            f"{self.strange_share:.0%} strange, resembling {self.variety:.1f} other classes, "
            f"agreement {self.agreement:.2f}, recall on trusted members {self.recall:.0%}, "
            f"excess at the top of both rankings {self.joint_excess:.2f}, bimodality {self.bimodality:.2f}: "
            + ("flagged" if self.flagged else "not flagged")
        )


def assess_class(spec: AblPlus, label: int, labels: Tensor, signs: Signs, sorting: Outcome) -> ClassEvidence:
    """The evidence on class ``label`` after the last sorting round."""
    members = (labels == label).nonzero().flatten()
    strangeness, elsewhere, trusted, held_out = (
        sorting.tensors[name].cpu()[members] for name in ("strangeness", "elsewhere", "trusted", "held_out")
    )
    strange, untrusted = strangeness > 0.5, ~trusted
    recall = 1 - strange[held_out].double().mean().item() if held_out.any() else 0.0

    def outranking(subset: Tensor) -> float:
        """Probability that a strange member of ``subset`` outranks another one, by the better of both signs."""
        return max(
            auroc_or_half(sign[members][subset], strange[subset]) for sign in (signs.speed, signs.dominance)
        )

    agreement, contrast = outranking(untrusted), outranking(strange | trusted)
    share = strange.double().mean().item()
    joint_excess = excess_at_top(label, labels, signs.speed) * excess_at_top(label, labels, signs.dominance)
    evidence = ClassEvidence(
        label=label,
        strange_share=share,
        agreement=agreement,
        contrast=contrast,
        variety=effective_number(elsewhere[strange]),
        recall=recall,
        joint_excess=joint_excess,
        bimodality=signs.bimodality(labels == label),
        flagged_by_sorting=False,
    )
    sufficient = share + agreement >= spec.proof or (share >= MAJOR_SHARE and agreement >= 0.5)
    # A clean class may have a second kind of members that resembles one other class; poison comes from many.
    varied = evidence.variety >= min(MIN_VARIETY, (len(labels.unique()) - 1) / 3)
    return replace(evidence, flagged_by_sorting=evidence.reliable and sufficient and varied)


def effective_number(values: Tensor) -> float:
    """Effective number of different ``values`` ``[n]``: the exponential of the entropy of their shares."""
    shares = values.unique(return_counts=True)[1].double() / max(1, len(values))
    return float(torch.exp(-(shares * shares.log()).sum()))


def excess_at_top(label: int, labels: Tensor, sign: Tensor) -> float:
    """How overrepresented a class is at the top of a ranking: 0 at its share of all samples, 1 if alone there."""
    at_top, overall = ((part == label).double().mean().item() for part in (labels[_top_rows(sign)], labels))
    return max(0.0, (at_top - overall) / (1 - overall)) if overall < 1 else 0.0


def combine_evidence(strangeness: Tensor, signs: Signs) -> Tensor:
    """Mean ``[n]`` of strangeness (weight 1) and of each sign, weighted by its rank correlation with strangeness."""
    total, weights = strangeness.clone(), 1.0
    for sign in (signs.speed, signs.dominance):
        weight = max(0.0, rank_correlation(sign, strangeness))
        total, weights = total + weight * sign, weights + weight
    return total / weights
