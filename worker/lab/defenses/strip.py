"""STRIP (Gao et al. 2019).

Clean images are superimposed on a sample. The prediction for a clean sample changes with every overlay; that for a
triggered one remains the target, so the mean entropy of its predictions is low (section 4). The threshold is the
quantile of the clean set's entropies at the accepted false positive rate (the paper's false rejection rate), of a
normal fit as in the paper or of the entropies themselves. The false acceptance rate is 1 minus the recall.
"""

from statistics import NormalDist

import torch
from torch import Tensor

from app.specs.defenses.detection import Strip
from app.specs.defenses.input_detection import StripInputs
from worker.lab.data.streamed import Images
from worker.lab.defenses.base import DetectionDefense
from worker.lab.defenses.detection import finish_detection, predict_superimposed, retrain_without_flagged
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun


def overlay_entropies(
    spec: Strip, lab: DetectionDefense, run: StageRun, images: Images, overlays: Images
) -> Tensor:
    """Mean entropy ``[N]``, in nats, of the victim's predictions for each image under random overlays."""
    total = torch.zeros(len(images), device=images.device)
    for log_probabilities in predict_superimposed(
        lab, run, lab.victim, images, overlays, spec.overlays, spec.overlay_weight
    ):
        total -= (log_probabilities.exp() * log_probabilities).sum(1)
    return total / spec.overlays


def entropy_threshold(spec: Strip | StripInputs, clean: Tensor) -> float:
    """The entropy below which an image is flagged, from the entropies ``[M]`` of clean images."""
    if spec.threshold == "quantile":
        return clean.double().quantile(spec.false_positive_rate).item()
    fitted = NormalDist(clean.mean().item(), max(clean.std().item(), 1e-9))
    return fitted.inv_cdf(spec.false_positive_rate)


def run(spec: Strip, lab: DetectionDefense) -> Network:
    """Score by entropy, flag low entropies, and retrain."""
    assert lab.clean is not None
    overlays = lab.clean.images

    def detect(stage: StageRun) -> Outcome:
        clean_entropies = overlay_entropies(spec, lab, stage, overlays, overlays)
        threshold = entropy_threshold(spec, clean_entropies)
        entropies = overlay_entropies(spec, lab, stage, lab.images, overlays)
        flagged = entropies < threshold
        share = flagged.double().mean().item()
        if 0 < share <= 1.5 * spec.false_positive_rate:
            lab.warn(
                stage,
                f"{share:.1%} of the training set was flagged, about the expected rate of false positives "
                f"({spec.false_positive_rate:.1%}); the set may be clean, or the trigger too weak for this test",
            )
        return finish_detection(lab, stage, -entropies, flagged)

    return retrain_without_flagged(lab, spec.then, lab.stage("detection", detect))
