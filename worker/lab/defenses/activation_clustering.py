"""Activation clustering (Chen et al. 2018).

The features of a poisoned class fall into two clusters, one of the class's own images and one of triggered ones.
Each class's features are reduced and split by 2-means; a cluster that is small and well separated is suspicious
(relative size and silhouette, section 5).

The paper reduces by independent components; principal components, which keep the directions' spread, separate better
here and are what the Adversarial Robustness Toolbox takes. A poisoned half of a class cannot be told from the other
half by its size: then nothing is flagged.
"""

import torch
from torch import Tensor

from app.specs.defenses.detection import ActivationClustering
from worker.lab.compute import derive_seed
from worker.lab.defenses.base import DetectionDefense
from worker.lab.defenses.detection import finish_detection, retrain_without_flagged
from worker.lab.evaluation import extract_features
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun

SILHOUETTE_SAMPLE = 2000  # its cost is quadratic


def reduce_dimensions(points: Tensor, components: int) -> Tensor:
    """``[n, D]`` on its first principal components, ``[n, min(components, n, D)]``."""
    centered = points.double() - points.double().mean(0)
    left, singular, _ = torch.linalg.svd(centered, full_matrices=False)
    first: Tensor = (left * singular)[:, :components]
    return first


def split_in_two(points: Tensor, seed: int) -> tuple[Tensor, Tensor, float]:
    """(bool ``[n]``: in the smaller cluster; margin ``[n]`` in [-1, 1], 1 at its center; silhouette)."""
    from sklearn.cluster import KMeans  # noqa: PLC0415  # slow to import
    from sklearn.metrics import silhouette_score  # noqa: PLC0415

    array = points.cpu().numpy()
    fitted = KMeans(2, n_init=10, random_state=seed).fit(array)
    belongs = torch.from_numpy(fitted.labels_.astype(bool))
    distance = torch.from_numpy(fitted.transform(array))
    if belongs.all() or not belongs.any():
        return torch.zeros_like(belongs), torch.zeros(len(points)), 0.0
    if belongs.double().mean() > 0.5:
        belongs, distance = ~belongs, distance.flip(1)
    margin = (distance[:, 0] - distance[:, 1]) / distance.sum(1).clamp(min=1e-12)
    sample = min(SILHOUETTE_SAMPLE, len(points))
    silhouette = float(silhouette_score(array, fitted.labels_, sample_size=sample, random_state=seed))
    return belongs, margin.float(), silhouette


def run(spec: ActivationClustering, lab: DetectionDefense) -> Network:
    """Cluster, flag, and purge."""

    def detect(stage: StageRun) -> Outcome:
        points = extract_features(lab.victim, lab.images, lab.compute)
        suspicion = torch.zeros(len(points), device=points.device)
        flagged = torch.zeros_like(lab.labels, dtype=torch.bool)
        silhouettes = torch.full((lab.facts.classes,), torch.nan)
        sizes = silhouettes.clone()
        for label in range(lab.facts.classes):
            rows = (lab.labels == label).nonzero().flatten()
            if len(rows) < 2 * spec.components:  # too few to tell two groups apart
                continue
            seed = derive_seed("activation clustering", lab.seed, label) % 2**32
            small, margin, silhouette = split_in_two(reduce_dimensions(points[rows], spec.components), seed)
            size = small.double().mean().item()
            silhouettes[label], sizes[label] = silhouette, size
            # Comparable across classes: how deep in the odd cluster, weighed by how separate the clusters are.
            suspicion[rows] = (margin * max(silhouette, 0.0)).to(suspicion.device)
            if size < spec.max_size and silhouette >= spec.min_silhouette:
                flagged[rows[small.to(rows.device)]] = True
        found = torch.bincount(lab.labels[flagged], minlength=lab.facts.classes) > 0
        by_class = {"class_silhouette": silhouettes, "class_small_share": sizes, "class_flagged": found}
        return finish_detection(lab, stage, suspicion, flagged, by_class)

    return retrain_without_flagged(lab, spec.then, lab.stage("detection", detect))
