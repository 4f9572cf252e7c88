"""STRIP (Gao et al. 2019).

Add many clean images to a sample. A clean sample's prediction changes with every overlay; a triggered one keeps
giving the target, so the mean entropy of its predictions is low (section 4). The threshold is the clean set's quantile
at the accepted false positive rate, from a normal fit as in the paper.
"""

from statistics import NormalDist

import torch
from torch import Tensor

from app.specs.defenses.detection import Strip
from worker.lab.defenses.base import DetectionDefense
from worker.lab.defenses.detection import finish_detection, predict_superimposed, retrain_without_flagged
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun


def overlay_entropies(
    spec: Strip, lab: DetectionDefense, run: StageRun, images: Tensor, overlays: Tensor
) -> Tensor:
    """Mean entropy ``[N]``, in nats, of the victim's predictions for each image under random overlays."""
    total = torch.zeros(len(images), device=images.device)
    for chances in predict_superimposed(
        lab, run, lab.victim, images, overlays, spec.overlays, spec.overlay_weight
    ):
        total -= (chances.exp() * chances).sum(1)
    return total / spec.overlays


def run(spec: Strip, lab: DetectionDefense) -> Network:
    """Score by entropy, flag, and purge."""
    assert lab.clean is not None
    overlays = lab.clean.images

    def detect(stage: StageRun) -> Outcome:
        normal = overlay_entropies(spec, lab, stage, overlays, overlays)
        spread = NormalDist(normal.mean().item(), max(normal.std().item(), 1e-9))
        threshold = spread.inv_cdf(spec.false_positive_rate)
        found = overlay_entropies(spec, lab, stage, lab.images, overlays)
        flagged = found < threshold
        share = flagged.double().mean().item()
        if 0 < share <= 1.5 * spec.false_positive_rate:
            lab.warn(
                stage,
                f"{share:.1%} of the training set was flagged, no more than the false positives to expect "
                f"({spec.false_positive_rate:.1%}); it may well be clean, or the trigger too weak for this test",
            )
        return finish_detection(lab, stage, -found, flagged)

    return retrain_without_flagged(lab, spec.then, lab.stage("detection", detect))
