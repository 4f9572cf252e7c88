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

Where speed and dominance name the same class with one voice, that is proof enough. On data that is hard to learn it is
the only one: no model knows a class from a few members there, so the sorting model is not listened to.

What is found is left out of training, and unlearned afterwards in case some was missed.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from app.specs.defenses.abl_plus import ROUNDS, AblPlus
from worker.lab.defenses import abl
from worker.lab.defenses.base import TrainingDefense, load_state, state
from worker.lab.defenses.detection import superimposed
from worker.lab.evaluation import auroc, predict
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun

OVERLAYS = 8
HEAD = 0.02  # of all samples: the most suspicious, whose majority label names a class to look into
FIRST_CORE, GROWTH = 0.1, 0.1  # of a class: what is trusted at first, and how much more after every round
COMPETENT = 0.9  # recall on trusted members held out, below which the sorting model is not listened to
MANY = 0.45  # of a class: so many strange members, by a competent model, accuse without further agreement
UNITED = 0.6  # product of a class's shares of both heads, from which on they accuse it with one voice


@dataclass(frozen=True)
class Signs:
    """What is known of every sample ``[N]``, each in [0, 1], 1 the most suspicious."""

    speed: Tensor
    dominance: Tensor


def run(spec: AblPlus, lab: TrainingDefense) -> Network:
    """Isolate, sort, judge, train on what is left, unlearn what was found."""
    isolation = lab.stage("isolation", lambda stage: abl.isolate(spec.abl, lab, stage))
    scouted = lab.stage("scout", lambda stage: scout(spec, lab, stage))
    signs = Signs(isolation.tensors["suspicion"].cpu(), scouted.tensors["dominance"].cpu())
    suspects = classes_to_sort([signs.speed, signs.dominance], lab.labels.cpu())
    sorting = Outcome({})
    for i in range(1, ROUNDS + 1):
        before = sorting.tensors.get("strangeness")
        sorting = lab.stage(
            f"sorting_{i}",
            lambda stage, before=before, i=i: sort(spec, lab, stage, signs, suspects, before, i),  # type: ignore[misc]
        )
    verdict = lab.stage("verdict", lambda stage: judge(spec, lab, stage, signs, suspects, sorting))
    trained = lab.stage("training", lambda stage: train_on_rest(lab, stage, verdict))
    if not len(verdict.tensors["isolated"]):
        return load_state(lab.new_network("victim"), trained.tensors, lab.compute.device)
    unlearned = lab.stage("unlearning", lambda stage: abl.unlearn(spec.abl, lab, stage, verdict, trained))
    return abl.network_of(lab, unlearned)


def scout(spec: AblPlus, lab: TrainingDefense, stage: StageRun) -> Outcome:
    """Train on everything; leaves ``dominance`` ``[N]``: the mean probability of a sample's label under overlays."""
    network = lab.new_network("scout")
    lab.fit(stage, network, replace(lab.recipe, epochs=spec.scout_epochs, memory={}))
    total = torch.zeros(len(lab.labels), device=lab.labels.device)
    for chances in superimposed(lab, stage, network, lab.images, lab.images, OVERLAYS):
        total += chances.gather(1, lab.labels[:, None]).flatten().exp()
    return stage.finish({"dominance": total / OVERLAYS})


def classes_to_sort(signs: list[Tensor], labels: Tensor) -> list[int]:
    """The majority label of the head of each sign's ranking, in order, without repeats."""
    return sorted({int(labels[_head(sign)].mode().values) for sign in signs})


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

    Leaves ``strangeness`` ``[N]`` (0 outside the suspected classes) and ``trusted``, bool ``[N]``: what the round's
    model has seen of those classes.
    """
    labels = lab.labels.cpu()
    suspected = torch.isin(labels, torch.tensor(suspects))
    trusted = torch.zeros_like(suspected)
    rows = [(~suspected).nonzero().flatten()]
    for c in suspects if before is not None else []:
        assert before is not None
        members = (labels == c).nonzero().flatten()
        core = _core(members, before, signs, FIRST_CORE + GROWTH * (round_ - 2))
        trusted[core] = True
        # Every fifth is held out, to see how well the model knows the class.
        taught = core[torch.arange(len(core)) % 5 != 4]
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
    return stage.finish({"strangeness": strangeness, "trusted": trusted})


def _core(members: Tensor, strangeness: Tensor, signs: Signs, share: float) -> Tensor:
    """The least suspicious ``share`` of a class: strangeness, and each sign that agrees with it."""
    score = strangeness[members].clone()
    for sign in (signs.speed, signs.dominance):
        weight = max(0.0, _correlation(sign[members], strangeness[members]))
        score += weight * _ranks(sign[members])
    return members[score.argsort(stable=True)[: max(2, round(share * len(members)))]]


def judge(
    spec: AblPlus, lab: TrainingDefense, stage: StageRun, signs: Signs, suspects: list[int], sorting: Outcome
) -> Outcome:
    """Which of the suspected classes are accused, and which of their members are poison.

    Leaves ``isolated`` rows, ``suspicion`` ``[N]``, and in its facts what the defence believes.
    """
    labels = lab.labels.cpu()
    strangeness, trusted = sorting.tensors["strangeness"].cpu(), sorting.tensors["trusted"].cpu()
    trials = [_try(spec, c, labels, strangeness, trusted, signs) for c in suspects]
    for trial in trials:
        lab.recorder.log(f"class {lab.facts.class_names[trial.label]!r}: {trial}")
    # One class alone: where one is poisoned, what its poison was made from looks odd as well.
    accused = max((t for t in trials if t.guilty), key=lambda t: t.strange + t.agreement, default=None)
    suspicion = 0.5 * _ranks(signs.speed)
    isolated = torch.zeros_like(trusted)
    belief: dict[str, object] = {"poisoned": accused is not None, "target_class": None, "poisoning_rate": 0.0}
    if accused is not None:
        members = (labels == accused.label).nonzero().flatten()
        evidence = _evidence(accused, strangeness[members], signs.speed[members], signs.dominance[members])
        isolated[members[evidence > _cut(evidence)]] = True
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
    guilty: bool

    @property
    def competent(self) -> bool:
        return self.recall >= COMPETENT

    @property
    def confidence(self) -> float:
        sorted_ = min(1.0, max(self.agreement, self.strange / MANY)) if self.competent else 0.0
        return max(sorted_, self.united)

    def __str__(self) -> str:
        return (
            f"{self.strange:.0%} of it strange, agreement {self.agreement:.2f}, trusted members known "
            f"{self.recall:.0%}, named by both heads {self.united:.2f}: "
            + ("accused" if self.guilty else "not accused")
        )


def _try(
    spec: AblPlus, label: int, labels: Tensor, strangeness: Tensor, trusted: Tensor, signs: Signs
) -> Trial:
    members = (labels == label).nonzero().flatten()
    strange, outside = strangeness[members] > 0.5, ~trusted[members]
    held_out = trusted[members].nonzero().flatten()[4::5]
    recall = 1 - strange[held_out].double().mean().item() if len(held_out) else 0.0
    agreement = max(
        _auroc(sign[members][outside], strange[outside]) for sign in (signs.speed, signs.dominance)
    )
    share = strange.double().mean().item()
    shares = [
        (labels[_head(sign)] == label).double().mean().item() for sign in (signs.speed, signs.dominance)
    ]
    united = shares[0] * shares[1]
    trial = Trial(label, share, agreement, recall, united, guilty=united >= UNITED)
    if trial.competent and (share + agreement >= spec.proof or share >= MANY):
        trial = replace(trial, guilty=True)
    return trial


def _evidence(trial: Trial, strangeness: Tensor, speed: Tensor, dominance: Tensor) -> Tensor:
    """How much speaks against each member ``[n]`` of the accused class, in [0, 1]."""
    if not trial.competent:
        return (speed + dominance) / 2
    total, weights = strangeness.clone(), 1.0
    for sign in (speed, dominance):  # as far as it agrees
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


def train_on_rest(lab: TrainingDefense, stage: StageRun, verdict: Outcome) -> Outcome:
    """A fresh model by the experiment's recipe, on everything that is not isolated."""
    keep = torch.ones_like(lab.labels, dtype=torch.bool)
    keep[verdict.tensors["isolated"].to(keep.device)] = False
    network = lab.new_network("victim")
    lab.fit(stage, network, replace(lab.recipe, memory={}), rows=keep.nonzero().flatten())
    if not len(verdict.tensors["isolated"]):
        return stage.finish(state(network))
    return stage.finish(abl.prefixed(network))


def _ranks(values: Tensor) -> Tensor:
    """Ranks in [0, 1], 1 the highest."""
    return values.argsort(stable=True).argsort(stable=True).float() / max(1, len(values) - 1)


def _correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation."""
    if len(a) < 3:
        return 0.0
    return float(torch.corrcoef(torch.stack([_ranks(a), _ranks(b)]))[0, 1])


def _auroc(scores: Tensor, positive: Tensor) -> float:
    """`auroc`, or one half where one of the kinds is missing."""
    return auroc(scores, positive) if positive.any() and not positive.all() else 0.5
