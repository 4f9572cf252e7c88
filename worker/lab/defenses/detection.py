"""What the detection defenses share: flagging samples, and what follows."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from app.specs.defenses.detection import Then
from worker.lab.compute import seeded_generator
from worker.lab.defenses.base import Defense, DetectionDefense, copy_state
from worker.lab.defenses.repair import load_network
from worker.lab.evaluation import predict_logits
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun

CHUNK = 8192  # images superimposed at a time: bounds the float copies
TOO_MANY = 0.5  # of a class or of the set: flagging more is no detection


def predict_superimposed(
    lab: Defense,
    run: StageRun,
    network: Network,
    images: Tensor,
    overlays: Tensor,
    times: int,
    weight: float = 1.0,
) -> Iterator[Tensor]:
    """``network``'s log-probabilities ``[N, classes]`` for ``images`` with a random overlay added, ``times`` times.

    ``images`` and ``overlays`` uint8 ``[N, C, H, W]`` and ``[M, C, H, W]``, the latter scaled by ``weight``;
    sums are clipped at white (Gao et al. 2019, section 4.1).
    """
    generator = seeded_generator(images.device, run.planned.stream, len(images))
    for _ in range(times):
        run.recorder.check()
        chosen = torch.randint(len(overlays), (len(images),), device=images.device, generator=generator)
        parts = []
        for rows in torch.arange(len(images), device=images.device).split(CHUNK):
            mixed = images[rows].float() + weight * overlays[chosen[rows]].float()
            mixed = mixed.round().clamp(0, 255).to(torch.uint8)
            parts.append(predict_logits(network, mixed, lab.compute).log_softmax(1))
        yield torch.cat(parts)


def finish_detection(
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


def retrain_without_flagged(lab: DetectionDefense, then: Then, detection: Outcome) -> Network:
    """The victim, or a fresh model trained on what was not flagged; with nothing flagged the victim stays."""
    if then == "nothing":
        return lab.victim

    def retrain(stage: StageRun) -> Outcome:
        keep = torch.ones_like(lab.labels, dtype=torch.bool)
        keep[detection.tensors["isolated"].to(keep.device)] = False
        if keep.all():
            return stage.finish(copy_state(lab.victim))
        network = lab.new_network("retrained")
        lab.fit(stage, network, replace(lab.recipe, memory={}), rows=keep.nonzero().flatten())
        return stage.finish(copy_state(network))

    return load_network(lab, lab.stage("retrain", retrain))
