"""ABL+: ABL's isolation, and class-level evidence that needs no clean images.

A backdoor is a label that the rest of the data does not explain, yet that training learns easily. Four signs are used:

- *speed*: the smoothed loss rank of ABL's isolation (Li et al. 2021, section 4.2);
- *dominance*: how often a sample keeps its label with another training image added to it, as in STRIP (Gao et al.
  2019), but by the probability of the label, not by entropy;
- *strangeness*: a classifier that learns a class from its least suspicious members, beside all other classes, rejects
  the members that are mislabeled. The first round starts with a classifier that has never seen the class: it
  recognizes mislabeled members as what they show, and the class's own members as nothing that it knows;
- *agreement*: in a clean class strange members are the hard ones, which are neither learned fast nor dominant. In a
  poisoned class they are one or both of these, or too many to be the hard ones; and they resemble several classes,
  while a clean class may have a second kind of members that resembles one other class.

On data that is hard to learn, a classifier does not recognize a class from a few members, and it is then ignored. There
speed and dominance are spread evenly over a clean class, and are bimodal in a poisoned one. A bimodal class is flagged,
and so is a class that is overrepresented at the top of both rankings.

The accusation is tested before anything is changed: models that never saw the flagged samples must not recognize them
as members of their class (`removal`). If they do, the model is trained on everything, with a warning.

The flagged samples are not learned. The final model is trained with a margin loss against the flagged label on half of
them, and does not see the other half. If it is clearly less accurate on the other classes than a model trained on
everything, a second one is trained, and the better is kept. If it predicts the flagged label for the half left out, a
model is trained without either half, and both are unlearned.
"""

import math
from dataclasses import asdict, replace

import torch
from torch import Tensor

from app.specs.defenses.abl_plus import MARGIN, REMOVALS, ROUNDS, SPLITS, AblPlus
from worker.lab.defenses import abl
from worker.lab.defenses.base import TrainingDefense
from worker.lab.defenses.detection import predict_superimposed
from worker.lab.defenses.removal import judge_removal, split_class, train_without
from worker.lab.defenses.signs import Signs, auroc_or_half, otsu_threshold, separability, unit_ranks
from worker.lab.defenses.sorting import (
    ClassEvidence,
    assess_class,
    candidate_classes,
    combine_evidence,
    run_sorting_round,
    run_splitting_round,
)
from worker.lab.evaluation import accuracy, predict_classes
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun

OVERLAYS = 8
ERROR_MARGIN = 0.1  # by which the rate of flagged labels exceeds the error rate if the backdoor was learned
ACCURACY_MARGIN = 0.02  # on the classes that are not flagged: a model so much below the scout is underfitted
POISON_THRESHOLD = 0.2  # a member is flagged above this probability of the most separable splitting round


def run(spec: AblPlus, lab: TrainingDefense) -> Network:
    """Isolate, assess classes, flag samples, train, and if need be unlearn."""
    isolation = lab.stage("isolation", lambda stage: abl.isolate_samples(spec.abl, lab, stage))
    scouted = lab.stage("scout", lambda stage: train_scout(spec, lab, stage))
    signs = Signs(isolation.tensors["suspicion"].cpu(), scouted.tensors["dominance"].cpu())
    candidates = candidate_classes(signs, lab.labels.cpu())
    sorting = Outcome({})
    for i in range(1, ROUNDS + 1):
        before = sorting.tensors.get("strangeness")
        sorting = lab.stage(
            f"sorting_{i}",
            lambda stage, before=before, i=i: run_sorting_round(  # type: ignore[misc]
                spec, lab, stage, signs, candidates, before, i
            ),
        )
    evidence = [assess_class(spec, c, lab.labels.cpu(), signs, sorting) for c in candidates]
    # At most one class: where one is poisoned, the classes that its poison was made from look unusual as well.
    flagged = max((e for e in evidence if e.flagged), key=lambda e: e.confidence, default=None)
    splittings: list[Outcome] = []
    for i in range(1, SPLITS + 1):
        before = splittings[-1].tensors.get("evidence") if splittings else None
        splittings.append(
            lab.stage(
                f"splitting_{i}",
                lambda stage, before=before, i=i: run_splitting_round(  # type: ignore[misc]
                    spec, lab, stage, signs, flagged, before, i
                ),
            )
        )
    accusation = lab.stage(
        "accusation", lambda stage: flag_samples(lab, stage, signs, sorting, evidence, flagged, splittings)
    )
    removals = [
        lab.stage(
            f"removal_{i}",
            lambda stage: run_removal(spec, lab, stage, signs, accusation),
        )
        for i in range(1, REMOVALS + 1)
    ]
    verdict = lab.stage("verdict", lambda stage: reach_verdict(lab, stage, signs, accusation, removals))
    trained = lab.stage("training", lambda stage: train_final(lab, stage, verdict, "victim"))
    underfitted = lab.recipe.epochs >= spec.scout_epochs and is_underfitted(lab, trained, scouted, verdict)
    second = lab.stage(
        "second_training",
        lambda stage: train_final(lab, stage, verdict, "second victim") if underfitted else stage.finish({}),
    )
    if underfitted:
        trained = max(trained, second, key=lambda outcome: float(outcome.facts["right"]))
    # The remaining stages are planned in any case; they are left empty where the backdoor was not learned.
    backdoored = bool(trained.facts["fooled"])
    retrained = lab.stage(
        "retraining",
        lambda stage: train_without_flagged(lab, stage, verdict) if backdoored else stage.finish({}),
    )
    unlearned = lab.stage(
        "unlearning",
        lambda stage: (
            abl.unlearn_isolated(spec.abl, lab, stage, verdict, retrained) if backdoored else stage.finish({})
        ),
    )
    return abl.load_prefixed_network(lab, unlearned if backdoored else trained)


def train_scout(spec: AblPlus, lab: TrainingDefense, stage: StageRun) -> Outcome:
    """Train on everything. Leaves ``dominance`` ``[N]``, the mean probability of a sample's label under overlays, and
    bool ``[N]`` ``known``, whether the sample itself is given its label."""
    network = lab.new_network("scout")
    lab.fit(stage, network, replace(lab.recipe, epochs=spec.scout_epochs, memory={}))
    total = torch.zeros(len(lab.labels), device=lab.labels.device)
    for log_probabilities in predict_superimposed(lab, stage, network, lab.images, lab.images, OVERLAYS):
        total += log_probabilities.gather(1, lab.labels[:, None]).flatten().exp()
    known = predict_classes(network, lab.images, lab.compute) == lab.labels
    return stage.finish({"dominance": total / OVERLAYS, "known": known})


def flag_samples(
    lab: TrainingDefense,
    stage: StageRun,
    signs: Signs,
    sorting: Outcome,
    evidence: list[ClassEvidence],
    flagged: ClassEvidence | None,
    splittings: list[Outcome],
) -> Outcome:
    """Decide which members of the flagged class look like poison.

    Leaves ``isolated`` rows, ``suspicion`` ``[N]``, and the flagged class in its facts, None if there is none.
    """
    labels = lab.labels.cpu()
    for of_class in evidence:
        lab.recorder.log(f"class {lab.facts.class_names[of_class.label]!r}: {of_class}")
    suspicion = 0.5 * unit_ranks(signs.speed)
    isolated = torch.zeros_like(labels, dtype=torch.bool)
    if flagged is not None:
        members = (labels == flagged.label).nonzero().flatten()
        if flagged.separates_members:
            scores = combine_evidence(sorting.tensors["strangeness"].cpu()[members], signs.of(members))
            threshold = otsu_threshold(scores)
        else:
            scores, threshold = most_separable(splittings), POISON_THRESHOLD
        isolated[members[scores > threshold]] = True
        # Every member of the flagged class ranks above every other sample.
        suspicion[members] = 0.5 + 0.5 * unit_ranks(scores)
    return stage.finish(
        {"suspicion": suspicion, "isolated": isolated.nonzero().flatten()},
        accused=None if flagged is None else flagged.label,
    )


def run_removal(
    spec: AblPlus, lab: TrainingDefense, stage: StageRun, signs: Signs, accusation: Outcome
) -> Outcome:
    """Train one model of the removal test; leaves nothing if no class is accused or too little of it is left."""
    accused, labels = accusation.facts["accused"], lab.labels.cpu()
    if accused is None:
        return stage.finish({})
    flagged = torch.zeros_like(labels, dtype=torch.bool)
    flagged[accusation.tensors["isolated"].cpu()] = True
    # Poison that was missed has a low suspicion, but still dominates what is added to it.
    doubt = unit_ranks(accusation.tensors["suspicion"].cpu()) + unit_ranks(signs.dominance)
    split = split_class(flagged, doubt, labels, accused, lab.seed)
    return stage.finish({}) if split is None else train_without(lab, stage, split, spec.removal_epochs)


def reach_verdict(
    lab: TrainingDefense, stage: StageRun, signs: Signs, accusation: Outcome, removals: list[Outcome]
) -> Outcome:
    """Keep what is flagged if the removal test shows that it is foreign to its class; else flag nothing, and warn.

    Leaves ``isolated`` rows, ``suspicion`` ``[N]``, and the defense's belief in its facts.
    """
    accused, rows = accusation.facts["accused"], accusation.tensors["isolated"].cpu()
    belief: dict[str, object] = {"poisoned": False, "target_class": None, "poisoning_rate": 0.0}
    removal = None
    if removals[0].tensors:
        members = lab.labels.cpu() == accused
        flagged = torch.zeros_like(members)
        flagged[rows] = True
        removal = judge_removal(
            [r.tensors["flagged"].cpu() for r in removals],
            [r.tensors["held_out"].cpu() for r in removals],
            accused,
            auroc_or_half(signs.dominance[members], flagged[members]),
        )
        lab.recorder.log(f"class {lab.facts.class_names[accused]!r}: {removal}")
        belief |= {"accused_class": accused, "removal_test": asdict(removal)}
    if removal is not None and removal.proves_poison:
        rate = len(rows) / len(lab.labels)
        belief |= {"poisoned": True, "target_class": accused, "poisoning_rate": rate}
    elif accused is None:
        lab.warn(stage, "no class was flagged; the model is trained on everything, as if undefended")
    else:
        why = "too few of its images, or classes, are left to test that" if removal is None else str(removal)
        lab.warn(
            stage,
            f"{len(rows)} images of class {lab.facts.class_names[accused]!r} look like poison, which is not confirmed: "
            f"{why}; the model is trained on everything, as if undefended",
        )
        rows = rows[:0]
    lab.record_isolation(stage, 1, accusation.tensors["suspicion"], rows)
    return stage.finish({"suspicion": accusation.tensors["suspicion"], "isolated": rows}, belief=belief)


def most_separable(splittings: list[Outcome]) -> Tensor:
    """The evidence ``[n]`` of the round whose evidence is the most separable.

    Not simply that of the last round: an underfitted classifier gives every member an intermediate probability.
    """
    return max((splitting.tensors["evidence"].cpu() for splitting in splittings), key=separability)


def margin_loss(losses: Tensor, flagged: Tensor) -> Tensor:
    """Mean over a batch of cross-entropy on unflagged and of a margin loss on flagged samples, a scalar.

    ``losses`` ``[B]`` are cross-entropies ``l``; ``flagged`` bool ``[B]``. Where it is False the loss is ``l``; else
    ``max(0, m + log(p / (1 - p)))`` with ``p = exp(-l)`` the flagged label's probability and ``m`` the margin. Its
    gradient in the log-odds is 1 until they are below ``-m``, and 0 from there: unlike gradient ascent it is bounded,
    and unlike ``-log(1 - p)`` it does not vanish as soon as the content of an image explains a low ``p``, so the
    trigger itself becomes evidence against the label.
    """
    # The small constant keeps log and gradient finite where p rounds to one.
    log_odds = -losses - torch.log(-torch.expm1(-losses - 1e-7))
    return torch.where(flagged, (MARGIN + log_odds).clamp(min=0), losses).mean()


def train_final(lab: TrainingDefense, stage: StageRun, verdict: Outcome, purpose: str) -> Outcome:
    """Train a fresh model by the experiment's recipe, with the margin loss on the more suspicious half of the
    flagged samples.

    Poison that was missed is outweighed: more images with the same trigger in the same batch teach the contrary. The
    less suspicious half is left out, because it holds the clean images that were flagged by mistake, and because it
    shows whether the trigger was learned. Leaves two facts: ``fooled``, True if it was, and ``right``, the accuracy
    on the classes that are not flagged.
    """
    suspicious, doubtful = split_flagged(lab, verdict)
    network = lab.new_network(purpose)
    recipe = replace(lab.recipe, memory={}, loss=lambda losses, rows: margin_loss(losses, suspicious[rows]))
    lab.fit(stage, network, recipe, rows=(~doubtful).nonzero().flatten())
    others = in_other_classes(lab, verdict)
    right = accuracy(network, lab.split.rows(others), lab.compute)
    fooled = predicts_flagged_label(lab, network, suspicious, doubtful)
    return stage.finish(abl.prefixed_state(network), right=right, fooled=fooled)


def in_other_classes(lab: TrainingDefense, verdict: Outcome) -> Tensor:
    """Members of all classes but the flagged one, bool ``[N]``: no missed poison, which a good model gets wrong."""
    target = verdict.facts["belief"]["target_class"]
    return torch.ones_like(lab.labels, dtype=torch.bool) if target is None else lab.labels != target


def is_underfitted(lab: TrainingDefense, trained: Outcome, scouted: Outcome, verdict: Outcome) -> bool:
    """Whether the model is clearly less accurate on the other classes than the scout, which was trained no longer.

    Poor initial weights can cause that, so it is not taken for the cost of the defense.
    """
    others = in_other_classes(lab, verdict)
    expected = scouted.tensors["known"].to(lab.labels.device)[others].double().mean().item()
    right = float(trained.facts["right"])
    if right >= expected - ACCURACY_MARGIN:
        return False
    lab.recorder.log(
        f"accuracy on the classes that are not flagged is {right:.1%}, that of the scout {expected:.1%}: trained once "
        "more from other initial weights"
    )
    return True


def split_flagged(lab: TrainingDefense, verdict: Outcome) -> tuple[Tensor, Tensor]:
    """The more and the less suspicious half of the flagged samples, bool ``[N]`` each."""
    rows = verdict.tensors["isolated"].to(lab.labels.device)
    suspicion = verdict.tensors["suspicion"].to(rows.device)[rows]
    order = rows[suspicion.argsort(descending=True, stable=True)]
    middle = math.ceil(len(order) / 2)
    suspicious, doubtful = (torch.zeros_like(lab.labels, dtype=torch.bool) for _ in range(2))
    suspicious[order[:middle]], doubtful[order[middle:]] = True, True
    return suspicious, doubtful


def predicts_flagged_label(
    lab: TrainingDefense, network: Network, suspicious: Tensor, doubtful: Tensor
) -> bool:
    """Whether the model predicts the flagged label for the flagged samples that it has not seen, clearly more often
    than it is wrong on the rest.

    Then poison was missed, and the trigger differs too much from image to image to be outweighed by the margin loss.
    """
    if not doubtful.any():
        return False
    flagged_rate, right = (
        accuracy(network, lab.split.rows(rows), lab.compute) for rows in (doubtful, ~suspicious & ~doubtful)
    )
    lab.recorder.log(
        f"the model predicts the flagged label for {flagged_rate:.1%} of the flagged samples that were left out; its "
        f"error rate on the rest is {1 - right:.1%}"
    )
    return flagged_rate > 1 - right + ERROR_MARGIN


def train_without_flagged(lab: TrainingDefense, stage: StageRun, verdict: Outcome) -> Outcome:
    """Train a fresh model by the experiment's recipe without any flagged sample."""
    suspicious, doubtful = split_flagged(lab, verdict)
    network = lab.new_network("victim")
    recipe = replace(lab.recipe, memory={})
    lab.fit(stage, network, recipe, rows=(~suspicious & ~doubtful).nonzero().flatten())
    return stage.finish(abl.prefixed_state(network))
