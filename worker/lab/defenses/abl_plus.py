"""ABL with a second opinion.

A backdoor is a label that the rest of the data does not explain, yet that training makes easy. Four signs are read,
none of which needs a clean image:

- *speed*: the smoothed loss rank of ABL's isolation (Li et al. 2021, section 4.2);
- *dominance*: how often a sample keeps its label with another training image added to it, as in STRIP (Gao et al.
  2019), but asking for the label and not for low entropy;
- *strangeness*: a model that learns a class from its least suspicious members alone, beside all of the other classes,
  says which of its members belong elsewhere. It starts from a model that has never seen the class, to which its own
  members look like nothing known, and mislabeled ones like what they are;
- *agreement*: in a clean class strange members are the hard ones, which are neither learned fast nor dominant. In a
  poisoned class they are both, or one of the two, or so many that they cannot be the hard ones; and they come from
  several classes, while a clean class may have a second kind that looks like one other.

On data that is hard to learn no model knows a class from a few members, and the sorting model is not listened to. There
the members of a clean class lie spread over speed and dominance, and those of a poisoned one in two heaps; that is
proof enough, and so is a class that both rankings name with one voice.

What is found is not learned: the final model is kept off the accused label on half of it, and does not see the other
half. If it knows clearly less of the other classes than a model trained on everything, another one is trained, and the
better is kept. If that gives the accused label to the half left out, a model is trained without either half, and both
are unlearned.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from app.specs.defenses.abl_plus import MARGIN, ROUNDS, SPLITS, AblPlus
from worker.lab.data.datasets import Split
from worker.lab.defenses import abl
from worker.lab.defenses.base import TrainingDefense
from worker.lab.defenses.detection import superimposed
from worker.lab.defenses.signs import Signs, best_cut, ranks, separability
from worker.lab.defenses.sorting import Trial, classes_to_sort, evidence_of, sort, split, trial_of
from worker.lab.evaluation import accuracy, predict
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun

OVERLAYS = 8
CLEARLY = 0.1
WORSE = 0.02  # of the classes that are not accused: whoever knows so much less than the scout learned badly
SURE = 0.2  # probability of being poison by the clearest splitting model, up to which a member is kept


def run(spec: AblPlus, lab: TrainingDefense) -> Network:
    """Isolate, sort, judge, train, unlearn."""
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
    trials = [trial_of(spec, c, lab.labels.cpu(), signs, sorting) for c in suspects]
    # One class alone: where one is poisoned, what its poison was made from looks odd as well.
    accused = max((t for t in trials if t.guilty), key=lambda t: t.confidence, default=None)
    splittings: list[Outcome] = []
    for i in range(1, SPLITS + 1):
        before = splittings[-1].tensors.get("evidence") if splittings else None
        splittings.append(
            lab.stage(
                f"splitting_{i}",
                lambda stage, before=before, i=i: split(spec, lab, stage, signs, accused, before, i),  # type: ignore[misc]
            )
        )
    verdict = lab.stage(
        "verdict", lambda stage: judge(lab, stage, signs, sorting, trials, accused, splittings)
    )
    trained = lab.stage("training", lambda stage: train(lab, stage, verdict, "victim"))
    unlucky = lab.recipe.epochs >= spec.scout_epochs and went_badly(lab, trained, scouted, verdict)
    second = lab.stage(
        "second_training",
        lambda stage: train(lab, stage, verdict, "second victim") if unlucky else stage.finish({}),
    )
    if unlucky:
        trained = max(trained, second, key=lambda outcome: float(outcome.facts["right"]))
    again = bool(trained.facts["fooled"])
    anew = lab.stage(
        "retraining", lambda stage: train_anew(lab, stage, verdict) if again else stage.finish({})
    )
    unlearned = lab.stage(
        "unlearning",
        lambda stage: abl.unlearn(spec.abl, lab, stage, verdict, anew) if again else stage.finish({}),
    )
    return abl.network_of(lab, unlearned if again else trained)


def scout(spec: AblPlus, lab: TrainingDefense, stage: StageRun) -> Outcome:
    """Train on everything. Leaves ``dominance`` ``[N]``, the mean probability of a sample's label under overlays, and
    bool ``[N]`` ``known``, whether the sample itself is given its label."""
    network = lab.new_network("scout")
    lab.fit(stage, network, replace(lab.recipe, epochs=spec.scout_epochs, memory={}))
    total = torch.zeros(len(lab.labels), device=lab.labels.device)
    for chances in superimposed(lab, stage, network, lab.images, lab.images, OVERLAYS):
        total += chances.gather(1, lab.labels[:, None]).flatten().exp()
    known = predict(network, lab.images, lab.compute).argmax(1) == lab.labels
    return stage.finish({"dominance": total / OVERLAYS, "known": known})


def judge(
    lab: TrainingDefense,
    stage: StageRun,
    signs: Signs,
    sorting: Outcome,
    trials: list[Trial],
    accused: Trial | None,
    splittings: list[Outcome],
) -> Outcome:
    """Which members of the accused class are poison.

    Leaves ``isolated`` rows, ``suspicion`` ``[N]``, and in its facts what the defense believes.
    """
    labels = lab.labels.cpu()
    for trial in trials:
        lab.recorder.log(f"class {lab.facts.class_names[trial.label]!r}: {trial}")
    suspicion = 0.5 * ranks(signs.speed)
    isolated = torch.zeros_like(labels, dtype=torch.bool)
    belief: dict[str, object] = {"poisoned": accused is not None, "target_class": None, "poisoning_rate": 0.0}
    if accused is not None:
        members = (labels == accused.label).nonzero().flatten()
        if accused.believed:
            evidence = evidence_of(sorting.tensors["strangeness"].cpu()[members], signs.of(members))
            cut = best_cut(evidence)
        else:
            evidence, cut = clearest(splittings), SURE
        isolated[members[evidence > cut]] = True
        suspicion[members] = 0.5 + 0.5 * ranks(evidence)
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


def clearest(splittings: list[Outcome]) -> Tensor:
    """The evidence ``[n]`` of the round that parts the class best. Not the last one: a model that has not learned in
    time what tells poison from the rest gives every member some chance of both."""
    return max((splitting.tensors["evidence"].cpu() for splitting in splittings), key=separability)


def kept_off(losses: Tensor, isolated: Tensor) -> Tensor:
    """The mean over a batch of what is learned and what is kept off, a scalar.

    ``losses`` ``[B]`` are cross-entropies ``l``; ``isolated`` bool ``[B]``. Where it is False the loss is ``l``; else
    ``max(0, m + log(p / (1 - p)))`` with ``p = exp(-l)`` the accused label's probability and ``m`` the margin. Its
    gradient in the log-odds is 1 until they are below ``-m``, and 0 from there: unlike ascent it has an end, and unlike
    ``-log(1 - p)`` it is not content with what the content of an image explains, so the trigger must speak against
    the label.
    """
    # The small constant keeps log and gradient finite where p rounds to one.
    log_odds = -losses - torch.log(-torch.expm1(-losses - 1e-7))
    return torch.where(isolated, (MARGIN + log_odds).clamp(min=0), losses).mean()


def train(lab: TrainingDefense, stage: StageRun, verdict: Outcome, purpose: str) -> Outcome:
    """A fresh model by the experiment's recipe, which learns everything but what is isolated, and is kept off the
    accused label on the surest half of that.

    Poison that was missed is outvoted: in one batch with it, more images with the same trigger say the contrary. The
    other half is left out altogether: clean images that were isolated by mistake are there, and it shows whether
    the trigger is what was learned: the fact ``fooled`` says that it is not. The fact ``right`` is the accuracy on
    the classes that are not accused.
    """
    surest, doubtful = halves(lab, verdict)
    network = lab.new_network(purpose)
    recipe = replace(lab.recipe, memory={}, loss=lambda losses, rows: kept_off(losses, surest[rows]))
    lab.fit(stage, network, recipe, rows=(~doubtful).nonzero().flatten())
    rows = not_accused(lab, verdict)
    right = accuracy(network, Split(lab.images[rows], lab.labels[rows]), lab.compute)
    fooled = is_fooled(lab, network, surest, doubtful)
    return stage.finish(abl.prefixed(network), right=right, fooled=fooled)


def not_accused(lab: TrainingDefense, verdict: Outcome) -> Tensor:
    """Members of all classes but the accused one, bool ``[N]``. There no poison can have been missed, which a good
    model must not know."""
    accused = verdict.facts["belief"]["target_class"]
    return torch.ones_like(lab.labels, dtype=torch.bool) if accused is None else lab.labels != accused


def went_badly(lab: TrainingDefense, trained: Outcome, scouted: Outcome, verdict: Outcome) -> bool:
    """Whether the model knows clearly less of the other classes than the scout, which was trained no longer. Where
    that is chance, it is not to be taken for the price of the defense."""
    expected = (
        scouted.tensors["known"].to(lab.labels.device)[not_accused(lab, verdict)].double().mean().item()
    )
    right = float(trained.facts["right"])
    if right >= expected - WORSE:
        return False
    lab.recorder.log(
        f"the model knows {right:.1%} of the classes that are not accused, and the scout {expected:.1%}: trained once "
        "more, from other weights"
    )
    return True


def halves(lab: TrainingDefense, verdict: Outcome) -> tuple[Tensor, Tensor]:
    """What is isolated, in two: the more suspicious half and the other, bool ``[N]`` each."""
    rows = verdict.tensors["isolated"].to(lab.labels.device)
    suspicion = verdict.tensors["suspicion"].to(rows.device)[rows]
    order = rows[suspicion.argsort(descending=True, stable=True)]
    middle = math.ceil(len(order) / 2)
    surest, doubtful = (torch.zeros_like(lab.labels, dtype=torch.bool) for _ in range(2))
    surest[order[:middle]], doubtful[order[middle:]] = True, True
    return surest, doubtful


def is_fooled(lab: TrainingDefense, network: Network, surest: Tensor, doubtful: Tensor) -> bool:
    """Whether the model gives the accused label to the isolated images that it has not seen, clearly more often than
    it errs on the rest: poison was missed, and the trigger differs too much from image to image to be outvoted."""
    if not doubtful.any():
        return False
    known, right = (
        accuracy(network, Split(lab.images[rows], lab.labels[rows]), lab.compute)
        for rows in (doubtful, ~surest & ~doubtful)
    )
    lab.recorder.log(
        f"the accused label is given to {known:.1%} of the isolated that were left out; of the rest "
        f"{1 - right:.1%} are misjudged"
    )
    return known > 1 - right + CLEARLY


def train_anew(lab: TrainingDefense, stage: StageRun, verdict: Outcome) -> Outcome:
    """A fresh model by the experiment's recipe, without anything that is isolated."""
    surest, doubtful = halves(lab, verdict)
    network = lab.new_network("victim")
    lab.fit(stage, network, replace(lab.recipe, memory={}), rows=(~surest & ~doubtful).nonzero().flatten())
    return stage.finish(abl.prefixed(network))
