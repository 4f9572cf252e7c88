"""What the detection defences share: flagging samples, and what follows."""

from dataclasses import replace

import torch
from torch import Tensor

from app.specs.defenses.detection import Then
from worker.lab.defenses.base import DetectionDefense, state
from worker.lab.defenses.repair import network_of
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun

TOO_MANY = 0.5  # of a class or of the set: flagging more is no detection


def flag(
    lab: DetectionDefense,
    run: StageRun,
    suspicion: Tensor,
    flagged: Tensor,
    by_class: dict[str, Tensor] | None = None,
) -> Outcome:
    """The outcome of a detection: ``suspicion`` ``[N]``, higher is worse, and ``flagged`` bool ``[N]``.

    ``by_class`` are findings ``[K]`` for the table of classes, named ``class_*``.
    Has it scored against the truth, and warns of what looks wrong without it.
    """
    rows = flagged.nonzero().flatten()
    lab.record_isolation(run, 1, suspicion, rows)
    share = len(rows) / len(flagged)
    if not len(rows):
        lab.warn(run, "nothing was flagged; the model is left as it is")
    elif share > TOO_MANY:
        lab.warn(run, f"{share:.0%} of the training set was flagged; this is no detection")
    else:
        sizes = torch.bincount(lab.labels, minlength=lab.facts.classes)
        found = torch.bincount(lab.labels[rows], minlength=lab.facts.classes)
        emptied = (found > TOO_MANY * sizes).nonzero().flatten().tolist()
        names = ", ".join(
            f"{lab.facts.class_names[c]!r} ({int(found[c])} of {int(sizes[c])})" for c in emptied
        )
        if emptied:
            lab.warn(run, f"most images of these classes were flagged: {names}")
    return run.finish({"suspicion": suspicion, "isolated": rows} | (by_class or {}))


def conclude(lab: DetectionDefense, then: Then, detection: Outcome) -> Network:
    """The victim, or a fresh model trained on what was not flagged; with nothing flagged the victim stays."""
    if then == "nothing":
        return lab.victim

    def retrain(stage: StageRun) -> Outcome:
        keep = torch.ones_like(lab.labels, dtype=torch.bool)
        keep[detection.tensors["isolated"].to(keep.device)] = False
        if keep.all():
            return stage.finish(state(lab.victim))
        network = lab.new_network("retrained")
        lab.fit(stage, network, replace(lab.recipe, memory={}), rows=keep.nonzero().flatten())
        return stage.finish(state(network))

    return network_of(lab, lab.stage("retrain", retrain))
