"""Shared parts of the detection defenses: superimposed images, flagging, and retraining."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from app.specs.defenses.detection import Then
from worker.lab.compute import images_at_once, seeded_generator
from worker.lab.data.streamed import Images
from worker.lab.defenses.base import Defense, DetectionDefense, copy_state
from worker.lab.defenses.repair import load_network
from worker.lab.evaluation import predict_logits
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun

CHUNK, FLOATS = 8192, 2**23  # images superimposed at a time, and values of large ones
TOO_MANY = 0.5  # share of a class or of the set; a detection that flags more is warned about


def superimpose(images: Tensor, overlays: Tensor, weight: float) -> Tensor:
    """uint8 ``images`` ``[N, C, H, W]`` plus ``weight`` times ``overlays``, one for each or one for all."""
    return (images.float() + weight * overlays.float()).round().clamp(0, 255).to(torch.uint8)


def predict_superimposed(
    lab: Defense,
    run: StageRun,
    network: Network,
    images: Images,
    overlays: Images,
    times: int,
    weight: float = 1.0,
) -> Iterator[Tensor]:
    """``network``'s log-probabilities ``[N, classes]`` for ``images`` with a random overlay added, ``times`` times.

    ``images`` and ``overlays`` uint8 ``[N, C, H, W]`` and ``[M, C, H, W]``, the latter scaled by ``weight``;
    sums are clipped at 255 (Gao et al. 2019, section 4.1).
    """
    generator = seeded_generator(images.device, run.planned.stream, len(images))
    for _ in range(times):
        run.recorder.check()
        chosen = torch.randint(len(overlays), (len(images),), device=images.device, generator=generator)
        parts = []
        for rows in torch.arange(len(images), device=images.device).split(
            images_at_once(images, CHUNK, FLOATS)
        ):
            mixed = superimpose(images[rows], overlays[chosen[rows]], weight)
            parts.append(predict_logits(network, mixed, lab.compute).log_softmax(1))
        yield torch.cat(parts)


def median_and_deviation(values: Tensor) -> tuple[Tensor, Tensor]:
    """The median, and the median absolute deviation from it, scaled by 1.4826 to a normal distribution's deviation."""
    values = values.double()
    median = values.quantile(0.5)
    return median, 1.4826 * (values - median).abs().quantile(0.5)


def finish_detection(
    lab: DetectionDefense,
    run: StageRun,
    suspicion: Tensor,
    flagged: Tensor,
    by_class: dict[str, Tensor] | None = None,
) -> Outcome:
    """The outcome of a detection: ``suspicion`` ``[N]``, higher is more suspicious, and ``flagged`` bool ``[N]``.

    ``by_class`` are tensors ``[K]`` for the table of classes, named ``class_*``. Records the isolation quality, and
    warns if nothing or too much is flagged.
    """
    rows = flagged.nonzero().flatten()
    lab.record_isolation(run, 1, suspicion, rows)
    share = len(rows) / len(flagged)
    if not len(rows):
        lab.warn(run, "nothing was flagged; the model is left as it is")
    elif share > TOO_MANY:
        lab.warn(run, f"{share:.0%} of the training set was flagged, too much for a detection")
    else:
        sizes = torch.bincount(lab.labels, minlength=lab.facts.classes)
        counts = torch.bincount(lab.labels[rows], minlength=lab.facts.classes)
        mostly_flagged = (counts > TOO_MANY * sizes).nonzero().flatten().tolist()
        names = ", ".join(
            f"{lab.facts.class_names[c]!r} ({int(counts[c])} of {int(sizes[c])})" for c in mostly_flagged
        )
        if mostly_flagged:
            lab.warn(run, f"most images of these classes were flagged: {names}")
    return run.finish({"suspicion": suspicion, "isolated": rows} | (by_class or {}))


def retrain_without_flagged(lab: DetectionDefense, then: Then, detection: Outcome) -> Network:
    """A new model trained on the samples that were not flagged; the victim if none was, or ``then`` is "nothing"."""
    if then == "nothing":
        return lab.victim

    def retrain(stage: StageRun) -> Outcome:
        kept = torch.ones_like(lab.labels, dtype=torch.bool)
        kept[detection.tensors["isolated"].to(kept.device)] = False
        if kept.all():
            return stage.finish(copy_state(lab.victim))
        network = lab.new_network("retrained")
        lab.fit(stage, network, replace(lab.recipe, memory={}), rows=kept.nonzero().flatten())
        return stage.finish(copy_state(network))

    return load_network(lab, lab.stage("retrain", retrain))
