"""Spectral signatures (Tran et al. 2018).

The features of a poisoned class are a mixture of two populations, and the direction between them is close to the top
singular vector of the class's centered features. A sample's score is its squared projection on it (algorithm 1).
"""

import torch
from torch import Tensor

from app.specs.defenses.detection import SpectralSignatures
from worker.lab.defenses.base import DetectionDefense
from worker.lab.defenses.detection import finish_detection, retrain_without_flagged
from worker.lab.evaluation import extract_features
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun

SAFETY = 1.5  # times the expected number of poisoned samples is removed (algorithm 1)
OUTLIER_VARIANCE = (
    2.5  # times the median class's variance along its top direction; from digits, seeds 7 and 8
)


def project_on_top_direction(points: Tensor) -> Tensor:
    """Projections ``[n]`` of centered ``[n, D]`` on their top right singular vector, whose sign is arbitrary."""
    centered = points.double() - points.double().mean(0)
    # The top right singular vector is the top eigenvector of the small D x D matrix.
    direction: Tensor = torch.linalg.eigh(centered.T @ centered).eigenvectors[:, -1]
    return centered @ direction


def outlier_scores(points: Tensor) -> Tensor:
    """Squared projections ``[n]`` of ``[n, D]`` on their top direction."""
    return project_on_top_direction(points).square().float()


def flagged_per_class(spec: SpectralSignatures, size: int, samples: int) -> int:
    """How many of a class of ``size`` are flagged, of ``samples`` in all classes.

    1.5 epsilon, epsilon being a share of the class (algorithm 1; BackdoorBench's percentile 85), or the number of
    poisoned samples in the whole set, capped at half of the class (backdoor-toolbox, spectral_signature.py:38,61).
    """
    if spec.expected_rate is not None:
        return min(size // 2, round(SAFETY * spec.expected_rate * samples))
    return min(size - 1, round(SAFETY * spec.expected_share * size))


def run(spec: SpectralSignatures, lab: DetectionDefense) -> Network:
    """Score each class, flag its highest scores, and retrain."""

    def detect(stage: StageRun) -> Outcome:
        points = extract_features(lab.victim, lab.images, lab.compute)
        suspicion = torch.zeros(len(points), device=points.device)
        flagged = torch.zeros_like(lab.labels, dtype=torch.bool)
        for label in range(lab.facts.classes):
            rows = (lab.labels == label).nonzero().flatten()
            if len(rows) < 2:
                continue
            suspicion[rows] = outlier_scores(points[rows])
            count = flagged_per_class(spec, len(rows), len(points))
            flagged[rows[suspicion[rows].argsort(descending=True, stable=True)[:count]]] = True
        spread = torch.stack([suspicion[lab.labels == label].mean() for label in lab.labels.unique()])
        if spread.max() < OUTLIER_VARIANCE * spread.quantile(0.5):
            lab.warn(
                stage,
                f"no class is an outlier, yet {int(flagged.sum())} images were flagged: this method flags the same "
                "share of every class, poisoned or not",
            )
        # Scores are squared distances in one feature space, so they can be compared across classes.
        return finish_detection(lab, stage, suspicion, flagged)

    return retrain_without_flagged(lab, spec.then, lab.stage("detection", detect))
