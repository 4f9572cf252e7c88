"""ABL+: isolates poison by a test instead of a rate, and changes nothing where the test finds none.

ABL (Li et al. 2021) isolates a fixed share of the samples. Where there is no poison, or where its loss does not fall
first, the samples that it unlearns are clean. Here isolation is a question about every class:

1. *Divide.* A model is trained on everything: the undefended one. Poison and clean members of a class differ in what it
   shows; one sign made of that (`signs`) is bimodal in a poisoned class.
2. *Remove.* Two models, each of which never saw one side of the divided classes, are asked about it (`removal`). The
   clean members of a class explain each other; poison is explained by nothing but itself.
3. *Leave out.* The final model is trained without the poison, and without members that are near it and that the model
   of the test does not recognize; on half of the poison it is trained against its label, in place of ABL's unlearning.
   If no poison is found, the result is the undefended model.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from app.specs.defenses.abl_plus import AblPlus
from worker.lab.defenses.base import TrainingDefense, copy_state, load_state
from worker.lab.defenses.power import measure_power
from worker.lab.defenses.removal import (
    ClassParts,
    Removal,
    find_poisoned,
    judge_removals,
    split_classes,
    train_without,
)
from worker.lab.defenses.signs import (
    MIN_CLASSES,
    MIN_MEMBERS,
    combine_signs,
    find_judged,
    measure_signs,
    unit_ranks,
)
from worker.lab.evaluation import accuracy
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun

MARGIN = 4.0  # nats by which the log-odds of the label are reduced below zero on penalized poison: to 1.8 %
MISSED = (
    0.1  # more of the poison that the final model was not trained on gets its label where it has the backdoor
)


@dataclass(frozen=True, eq=False)
class Examined:
    """One side of a class, and what the removal test says about it."""

    parts: ClassParts
    removal: Removal
    recognized: Tensor
    """Samples that the model of the test gives the class's label, bool ``[N]``."""

    @property
    def unexplained(self) -> Tensor:
        """The flagged members that it does not recognize, bool ``[N]``; the others are mostly clean."""
        return self.parts.flagged & ~self.recognized


def run(spec: AblPlus, lab: TrainingDefense) -> Network:
    """Divide, remove, and leave out."""
    undefended = lab.train_undefended()
    measured = lab.stage("signs", lambda stage: find_sign(lab, stage, undefended))
    sign, dominance = (measured.tensors[name].cpu() for name in ("sign", "dominance"))
    labels = lab.labels.cpu()
    examined = [
        side
        for kind, smaller in (("smaller_sides", True), ("larger_sides", False))
        for side in examine(lab, kind, split_classes(sign, labels, lab.seed, smaller=smaller), dominance)
    ]
    poisoned = find_poisoned([side.removal for side in examined], len(labels.unique()))
    proved = [side for side in examined if side.removal in poisoned]
    isolated = torch.zeros_like(labels, dtype=torch.bool)
    for side in proved:
        isolated |= side.unexplained
    accused = [side.parts.label for side in proved]
    power = lab.stage("power", lambda stage: measure_power(lab, stage, isolated, accused)).facts["power"]
    lab.stage(
        "verdict", lambda stage: reach_verdict(lab, stage, dominance, examined, proved, isolated, power)
    )
    # Planned in any case, and left empty where nothing is poison.
    trained = lab.stage(
        "training", lambda stage: train_final(lab, stage, proved) if proved else stage.finish({})
    )
    return load_state(undefended, trained.tensors, lab.compute.device) if proved else undefended


def find_sign(lab: TrainingDefense, stage: StageRun, network: Network) -> Outcome:
    """The sign that divides classes, made of those that ``network``, trained on everything, shows."""
    signs = measure_signs(lab, stage, network, lab.split)
    return stage.finish({"sign": combine_signs(signs, lab.labels.cpu()), "dominance": signs["dominance"]})


def examine(lab: TrainingDefense, kind: str, parts: list[ClassParts], dominance: Tensor) -> list[Examined]:
    """The removal test of some ``parts``, with one model for all; the stage is called ``kind``."""
    tested = lab.stage(kind, lambda stage: train_without(lab, stage, parts) if parts else stage.finish({}))
    if not parts:
        return []
    predicted, chances = tested.tensors["predicted"].cpu(), tested.tensors["chances"].cpu()
    removals = judge_removals(parts, lab.labels.cpu(), predicted, chances, dominance)
    return [
        Examined(of_class, removal, predicted == of_class.label)
        for of_class, removal in zip(parts, removals, strict=True)
    ]


def reach_verdict(
    lab: TrainingDefense,
    stage: StageRun,
    dominance: Tensor,
    examined: list[Examined],
    proved: list[Examined],
    isolated: Tensor,
    power: list[dict[str, Any]],
) -> Outcome:
    """Report what is poison, ``isolated`` bool ``[N]``, and what would have been noticed; warn if nothing is poison.

    Leaves ``isolated`` rows, ``suspicion`` ``[N]``, and the defense's belief in its facts.
    """
    labels, names = lab.labels.cpu(), lab.facts.class_names
    suspicion = 0.5 * unit_ranks(dominance)
    for side in examined:
        found = "poison" if side in proved else "not confirmed"
        lab.recorder.log(
            f"class {names[side.parts.label]!r}, {int(side.parts.flagged.sum())} of {int(side.parts.members.sum())} "
            f"images: {found}; {side.removal}"
        )
    for side in proved:
        members = side.parts.members
        # Every member of a poisoned class ranks above every other sample.
        suspicion[members] = 0.5 + 0.5 * unit_ranks(side.parts.doubt[members])
    targets = [side.parts.label for side in proved]
    not_judged = sorted(set(labels.tolist()) - set(find_judged(labels)))
    if not_judged:
        lab.warn(
            stage,
            f"{len(not_judged)} classes cannot be judged: at least {MIN_CLASSES} classes, and {MIN_MEMBERS} images of "
            "a class, are needed",
        )
    if not proved:
        suspects = ", ".join(
            repr(names[label])
            for label in dict.fromkeys(side.parts.label for side in examined if side.parts.is_bimodal)
        )
        why = f"some images of {suspects} look like poison, which the removal test does not confirm"
        noticed, missed = (
            ", ".join(
                f"{decoy['trigger']} on {decoy['share']:.0%}" for decoy in power if decoy["noticed"] is answer
            )
            for answer in (True, False)
        )
        lab.warn(
            stage,
            f"{why if suspects else 'no class looks poisoned'}; the model is the undefended one. "
            f"Of decoys in other classes, it would have noticed: {noticed or 'none'}; not: {missed or 'none'}",
        )
    rows = isolated.nonzero().flatten()
    lab.record_isolation(stage, 1, suspicion, rows)
    belief = {
        "poisoned": bool(proved),
        "target_class": targets[0] if len(targets) == 1 else None,
        "target_classes": sorted(targets),
        "poisoning_rate": len(rows) / len(labels),
        "not_judged": not_judged,
        "power": power,
        "removal_tests": [
            {
                "images": int(side.parts.flagged.sum()),
                "poison": side in proved,
                "unexplained": side.removal.is_unexplained,
            }
            | asdict(side.removal)
            for side in examined
        ],
    }
    return stage.finish({"suspicion": suspicion, "isolated": rows}, belief=belief)


def margin_loss(losses: Tensor, penalized: Tensor) -> Tensor:
    """Mean over a batch of cross-entropy, and of a margin loss on the ``penalized`` samples, a scalar.

    ``losses`` ``[B]`` are cross-entropies ``l``; ``penalized`` bool ``[B]``. Where it is False the loss is ``l``; else
    ``max(0, m + log(p / (1 - p)))`` with ``p = exp(-l)`` the label's probability and ``m`` the margin. Its gradient in
    the log-odds is 1 until they are below ``-m``, and 0 from there: unlike gradient ascent it is bounded, and unlike
    ``-log(1 - p)`` it does not vanish as soon as the content of an image explains a low ``p``, so the trigger itself
    becomes evidence against the label.
    """
    # The small constant keeps log and gradient finite where p rounds to one.
    log_odds = -losses - torch.log(-torch.expm1(-losses - 1e-7))
    return torch.where(penalized, (MARGIN + log_odds).clamp(min=0), losses).mean()


def train_final(lab: TrainingDefense, stage: StageRun, proved: list[Examined]) -> Outcome:
    """Train a fresh model by the experiment's recipe, without poison and what may be more of it.

    The half of the poison that is farthest from the rest of its class is trained on with the margin loss: without it a
    model still confuses some images with the class once they carry the trigger, and poison that was missed teaches it
    the backdoor. The other half is left out, and the whole flagged side with it. Warns if the model gives that half its
    label, unlike the model of the test, which saw none of the poison: then it has learned the backdoor all the same.
    """
    penalized, left_out = (torch.zeros(len(lab.labels), dtype=torch.bool) for _ in range(2))
    halves: list[Tensor] = []
    for side in proved:
        rows = side.unexplained.nonzero().flatten()
        order = rows[side.parts.doubt[rows].argsort(descending=True, stable=True)]
        penalized[order[: len(order) // 2]] = True
        halves.append(order[len(order) // 2 :])
        left_out |= (side.parts.flagged & ~penalized) | (side.parts.near & ~side.recognized)
    network = lab.new_network("victim")
    on_device = penalized.to(lab.labels.device)
    recipe = replace(lab.recipe, memory={}, loss=lambda losses, rows: margin_loss(losses, on_device[rows]))
    lab.fit(stage, network, recipe, rows=(~left_out).nonzero().flatten())
    for side, half in zip(proved, halves, strict=True):
        known = accuracy(network, lab.split.rows(half.to(lab.labels.device)), lab.compute)
        result = (
            f"the final model gives the label {lab.facts.class_names[side.parts.label]!r} to {known:.1%} of the poison "
            "of that class that it was not trained on"
        )
        if known > MISSED:
            lab.warn(stage, f"{result}: it may still have the backdoor, from poison that was missed")
        else:
            lab.recorder.log(result)
    return stage.finish(copy_state(network))
