"""ABL with a second opinion.

A backdoor is a label that the rest of the data does not explain, yet that training makes easy. Four signs are read,
none of which needs a clean image:

- *speed*: the smoothed loss rank of ABL's isolation (Li et al. 2021, section 4.2);
- *dominance*: how often a sample keeps its label with another training image added to it, as in STRIP (Gao et al.
  2019), but asking for the label and not for low entropy;
- *strangeness*: a model that learns a class from its least suspicious members alone, beside all of the other classes,
  says which of its members belong elsewhere. It starts from a model that has never seen the class, to which its own
  members look like nothing known, and mislabelled ones like what they are;
- *agreement*: in a clean class strange members are the hard ones, which are neither learned fast nor dominant. In a
  poisoned class they are both, or one of the two, or so many that they cannot be the hard ones.

On data that is hard to learn no model knows a class from a few members, and the sorting model is not listened to. There
the members of a clean class lie spread over speed and dominance, and those of a poisoned one in two heaps; that is
proof enough, and so is a class that both rankings name with one voice.

What is found is left out of training. If the model gives it the accused label nevertheless, some poison was missed, and
it is unlearned as well.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from app.specs.defenses.abl_plus import ROUNDS, SPLITS, AblPlus
from worker.lab.data.datasets import Split
from worker.lab.defenses import abl
from worker.lab.defenses.base import TrainingDefense
from worker.lab.defenses.detection import superimposed
from worker.lab.evaluation import accuracy, auroc, predict
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun

OVERLAYS = 8
HEAD = 0.02  # of all samples: the most suspicious, whose majority label names a class to look into
FIRST_CORE, GROWTH = 0.1, 0.1  # of a class: what is trusted at first, and how much more after every round
COMPETENT = 0.8  # recall on trusted members held out, below which the sorting model is not listened to
MANY = 0.45  # of a class: so many strange members, if they are not the slow ones, accuse by themselves
SOME = 0.25  # of a class: fewer strange members say nothing of single ones
NOT_AGAINST = 0.35  # agreement, below which the strange members are the hard ones
UNITED = 0.6  # product of a class's shares of both heads, from which on they accuse it with one voice
TWO_HEAPS = 0.78  # separability of a class; evenly spread members have 0.75, those of one heap less
END = 0.2  # of an accused class, at either end: what the splitting models learn from
SURE = 0.2  # probability of being poison by the last splitting model, up to which a member is kept
FEW = 50  # members; fewer lie in two heaps by chance


@dataclass(frozen=True)
class Signs:
    """What is known of every sample ``[N]``, each in [0, 1], 1 the most suspicious."""

    speed: Tensor
    dominance: Tensor

    def of(self, rows: Tensor) -> "Signs":
        return Signs(self.speed[rows], self.dominance[rows])

    @property
    def mean(self) -> Tensor:
        return (self.speed + self.dominance) / 2

    def heaps(self, members: Tensor) -> float:
        """How far the mean of both signs parts a class, bool ``[N]``, in two: Otsu's (1979) separability, in [0, 1].

        0 if the class is too small to tell heaps from chance.
        """
        if int(members.sum()) < FEW:
            return 0.0
        return separability(self.mean[members])


def run(spec: AblPlus, lab: TrainingDefense) -> Network:
    """Isolate, sort, judge, train on what is left, unlearn what was found."""
    isolation = lab.stage("isolation", lambda stage: abl.isolate(spec.abl, lab, stage))
    scouted = lab.stage("scout", lambda stage: scout(spec, lab, stage))
    signs = Signs(isolation.tensors["suspicion"].cpu(), scouted.tensors["dominance"].cpu())
    suspects = classes_to_sort(signs, lab.labels.cpu())
    sorting = Outcome({})
    for i in range(1, ROUNDS + 1):
        before = sorting.tensors.get("strangeness")
        sorting = lab.stage(
            f"sorting_{i}",
            lambda stage, before=before, i=i: sort(spec, lab, stage, signs, suspects, before, i),  # type: ignore[misc]
        )
    trials = [_try(spec, c, lab.labels.cpu(), signs, sorting) for c in suspects]
    # One class alone: where one is poisoned, what its poison was made from looks odd as well.
    accused = max((t for t in trials if t.guilty), key=lambda t: t.confidence, default=None)
    splitting = Outcome({})
    for i in range(1, SPLITS + 1):
        before = splitting.tensors.get("evidence")
        splitting = lab.stage(
            f"splitting_{i}",
            lambda stage, before=before, i=i: split(spec, lab, stage, signs, accused, before, i),  # type: ignore[misc]
        )
    verdict = lab.stage(
        "verdict", lambda stage: judge(lab, stage, signs, sorting, trials, accused, splitting)
    )
    trained = lab.stage("training", lambda stage: train_on_rest(lab, stage, verdict))
    unlearned = lab.stage("unlearning", lambda stage: unlearn(spec, lab, stage, verdict, trained))
    return abl.network_of(lab, unlearned)


def scout(spec: AblPlus, lab: TrainingDefense, stage: StageRun) -> Outcome:
    """Train on everything; leaves ``dominance`` ``[N]``: the mean probability of a sample's label under overlays."""
    network = lab.new_network("scout")
    lab.fit(stage, network, replace(lab.recipe, epochs=spec.scout_epochs, memory={}))
    total = torch.zeros(len(lab.labels), device=lab.labels.device)
    for chances in superimposed(lab, stage, network, lab.images, lab.images, OVERLAYS):
        total += chances.gather(1, lab.labels[:, None]).flatten().exp()
    return stage.finish({"dominance": total / OVERLAYS})


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

    Leaves ``strangeness`` ``[N]`` (0 outside the suspected classes) and two bool ``[N]``: ``trusted``, the core of
    those classes, and ``held_out``, the part of it that the round's model has not seen.
    """
    labels = lab.labels.cpu()
    suspected = torch.isin(labels, torch.tensor(suspects))
    trusted, held_out = torch.zeros_like(suspected), torch.zeros_like(suspected)
    rows = [(~suspected).nonzero().flatten()]
    for c in suspects if before is not None else []:
        assert before is not None
        members = (labels == c).nonzero().flatten()
        core = _core(members, before, signs, FIRST_CORE + GROWTH * (round_ - 2))
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
    strangeness = torch.zeros(len(labels))
    for c in suspects:
        members = (labels == c).nonzero().flatten()
        if before is None:  # energy (Liu et al. 2020): high where the model recognises another class
            others = [k for k in range(lab.facts.classes) if k not in suspects]
            strangeness[members] = _ranks(logits[members][:, others].logsumexp(1))
        else:
            strangeness[members] = 1 - logits[members].softmax(1)[:, c]
    return stage.finish({"strangeness": strangeness, "trusted": trusted, "held_out": held_out})


def _core(members: Tensor, strangeness: Tensor, signs: Signs, share: float) -> Tensor:
    """The least suspicious ``share`` of a class: strangeness, and each sign that agrees with it."""
    score = strangeness[members].clone()
    for sign in (signs.speed, signs.dominance):
        weight = max(0.0, _correlation(sign[members], strangeness[members]))
        score += weight * _ranks(sign[members])
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


def judge(
    lab: TrainingDefense,
    stage: StageRun,
    signs: Signs,
    sorting: Outcome,
    trials: "list[Trial]",
    accused: "Trial | None",
    splitting: Outcome,
) -> Outcome:
    """Which members of the accused class are poison.

    Leaves ``isolated`` rows, ``suspicion`` ``[N]``, and in its facts what the defence believes.
    """
    labels = lab.labels.cpu()
    for trial in trials:
        lab.recorder.log(f"class {lab.facts.class_names[trial.label]!r}: {trial}")
    suspicion = 0.5 * _ranks(signs.speed)
    isolated = torch.zeros_like(labels, dtype=torch.bool)
    belief: dict[str, object] = {"poisoned": accused is not None, "target_class": None, "poisoning_rate": 0.0}
    if accused is not None:
        members = (labels == accused.label).nonzero().flatten()
        if accused.believed:
            evidence = _evidence(sorting.tensors["strangeness"].cpu()[members], signs.of(members))
            cut = _cut(evidence)
        else:
            evidence, cut = splitting.tensors["evidence"].cpu(), SURE
        isolated[members[evidence > cut]] = True
        suspicion[members] = 0.5 + 0.5 * _ranks(evidence)
        rate = isolated.double().mean().item()
        belief |= {
            "target_class": accused.label,
            "poisoning_rate": rate,
            "confidence": round(accused.confidence, 4),
        }
    else:
        lab.warn(stage, "no poison was found; the model is trained on everything, as if undefended")
    rows = isolated.nonzero().flatten()
    lab.record_isolation(stage, 1, suspicion, rows)
    return stage.finish({"suspicion": suspicion, "isolated": rows}, belief=belief)


@dataclass(frozen=True)
class Trial:
    """What speaks for and against a class. All but ``label`` and ``guilty`` are in [0, 1]."""

    label: int
    strange: float
    """Share of the members that belong elsewhere, by the last sorting model."""
    agreement: float
    """Probability that a strange member outranks another in speed or dominance, whichever agrees better."""
    recall: float
    """Share of the trusted members held out that the sorting model knows: whether it is worth asking."""
    united: float
    """Product of the class's shares of the heads of both rankings."""
    heaps: float
    """How far speed and dominance part the class in two."""
    sorted_out: bool
    """Whether the sorting model, by itself, accuses it."""

    @property
    def competent(self) -> bool:
        return self.recall >= COMPETENT

    @property
    def believed(self) -> bool:
        """Whether the sorting model's word counts for single members: it knows the class, finds something, and what it
        finds are not clearly the slow ones."""
        return self.competent and self.strange >= SOME and self.agreement >= NOT_AGAINST

    @property
    def guilty(self) -> bool:
        return self.sorted_out or self.united >= UNITED or self.heaps >= TWO_HEAPS

    @property
    def confidence(self) -> float:
        sorted_ = min(1.0, max(self.agreement, self.strange / MANY)) if self.sorted_out else 0.0
        return max(sorted_, self.united, self.heaps)

    def __str__(self) -> str:
        return (
            f"{self.strange:.0%} of it strange, agreement {self.agreement:.2f}, trusted members known "
            f"{self.recall:.0%}, named by both heads {self.united:.2f}, in two heaps {self.heaps:.2f}: "
            + ("accused" if self.guilty else "not accused")
        )


def _try(spec: AblPlus, label: int, labels: Tensor, signs: Signs, sorting: Outcome) -> Trial:
    members = (labels == label).nonzero().flatten()
    strangeness, trusted, held_out = (
        sorting.tensors[name].cpu()[members] for name in ("strangeness", "trusted", "held_out")
    )
    strange, outside = strangeness > 0.5, ~trusted
    recall = 1 - strange[held_out].double().mean().item() if held_out.any() else 0.0
    agreement = max(
        _auroc(sign[members][outside], strange[outside]) for sign in (signs.speed, signs.dominance)
    )
    share = strange.double().mean().item()
    shares = [
        (labels[_head(sign)] == label).double().mean().item() for sign in (signs.speed, signs.dominance)
    ]
    trial = Trial(label, share, agreement, recall, shares[0] * shares[1], signs.heaps(labels == label), False)
    proven = share + agreement >= spec.proof or (share >= MANY and agreement >= 0.5)
    return replace(trial, sorted_out=trial.competent and proven)


def _evidence(strangeness: Tensor, signs: Signs) -> Tensor:
    """How much speaks against each member ``[n]`` of a class: strangeness, and each sign as far as it agrees."""
    total, weights = strangeness.clone(), 1.0
    for sign in (signs.speed, signs.dominance):
        weight = max(0.0, _correlation(sign, strangeness))
        total, weights = total + weight * sign, weights + weight
    return total / weights


def _cut(values: Tensor) -> float:
    """Otsu's threshold: the one that leaves the least variance within the two sides."""
    ordered = values.double().sort().values
    n = len(ordered)
    if n < 2:
        return float(ordered[-1])
    left = torch.arange(1, n, dtype=torch.double)
    sums = ordered.cumsum(0)
    means_left = sums[:-1] / left
    means_right = (sums[-1] - sums[:-1]) / (n - left)
    between = left * (n - left) * (means_left - means_right) ** 2
    i = int(between.argmax())
    return float((ordered[i] + ordered[i + 1]) / 2)


def separability(values: Tensor) -> float:
    """Share of the variance of ``values`` that lies between the two sides of their best cut (Otsu 1979): 0.64 for a
    normal distribution, 0.75 for a uniform one, 1 for two points."""
    values = values.double()
    high = values > _cut(values)
    if len(values) < 2 or not high.any():
        return 0.0
    share = high.double().mean()
    between = share * (1 - share) * (values[high].mean() - values[~high].mean()) ** 2
    return float(between / values.var(correction=0))


def train_on_rest(lab: TrainingDefense, stage: StageRun, verdict: Outcome) -> Outcome:
    """A fresh model by the experiment's recipe, on everything that is not isolated."""
    keep = torch.ones_like(lab.labels, dtype=torch.bool)
    keep[verdict.tensors["isolated"].to(keep.device)] = False
    network = lab.new_network("victim")
    lab.fit(stage, network, replace(lab.recipe, memory={}), rows=keep.nonzero().flatten())
    return stage.finish(abl.prefixed(network))


def unlearn(
    spec: AblPlus, lab: TrainingDefense, stage: StageRun, verdict: Outcome, trained: Outcome
) -> Outcome:
    """`abl.unlearn` on what was isolated, if the model, which has not seen it, still gives it the accused label, and
    more often than it errs on what it has seen."""
    isolated = torch.zeros_like(lab.labels, dtype=torch.bool)
    isolated[verdict.tensors["isolated"].to(isolated.device)] = True
    if isolated.any():
        network = abl.network_of(lab, trained)
        known, right = (
            accuracy(network, Split(lab.images[rows], lab.labels[rows]), lab.compute)
            for rows in (isolated, ~isolated)
        )
        lab.recorder.log(
            f"the accused label is given to {known:.1%} of the isolated; of the rest {1 - right:.1%} are misjudged"
        )
        if known > 1 - right:
            return abl.unlearn(spec.abl, lab, stage, verdict, trained)
    return stage.finish(trained.tensors)


def _ranks(values: Tensor) -> Tensor:
    """Ranks in [0, 1], 1 the highest."""
    return abl.smoothed_ranks([values]).float()


def _correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation."""
    if len(a) < 3:
        return 0.0
    return float(torch.corrcoef(torch.stack([_ranks(a), _ranks(b)]))[0, 1])


def _auroc(scores: Tensor, positive: Tensor) -> float:
    """`auroc`, or one half where one of the kinds is missing."""
    return auroc(scores, positive) if positive.any() and not positive.all() else 0.5
