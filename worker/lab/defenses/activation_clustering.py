"""Activation clustering (Chen et al. 2018).

The features of a poisoned class form two clusters, one of the class's own images and one of triggered ones. Each
class's features are reduced and clustered by 2-means; a cluster that is small and well separated is suspicious
(relative size and silhouette, section 5).

The paper reduces by independent components. Principal components, which keep the variance of each direction, separate
better here, and the Adversarial Robustness Toolbox uses them too. If half of a class is poisoned, size does not tell
the clusters apart, and nothing is flagged.
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

SILHOUETTE_SAMPLE = 2000  # points; the cost of the silhouette is quadratic


def reduce_dimensions(points: Tensor, components: int) -> Tensor:
    """``[n, D]`` projected on its first principal components, ``[n, min(components, n, D)]``."""
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
    in_smaller = torch.from_numpy(fitted.labels_.astype(bool))
    distance = torch.from_numpy(fitted.transform(array))
    if in_smaller.all() or not in_smaller.any():
        return torch.zeros_like(in_smaller), torch.zeros(len(points)), 0.0
    if in_smaller.double().mean() > 0.5:
        in_smaller, distance = ~in_smaller, distance.flip(1)
    margin = (distance[:, 0] - distance[:, 1]) / distance.sum(1).clamp(min=1e-12)
    sample = min(SILHOUETTE_SAMPLE, len(points))
    silhouette = float(silhouette_score(array, fitted.labels_, sample_size=sample, random_state=seed))
    return in_smaller, margin.float(), silhouette


def run(spec: ActivationClustering, lab: DetectionDefense) -> Network:
    """Cluster each class, flag small clusters, and retrain."""

    def detect(stage: StageRun) -> Outcome:
        points = extract_features(lab.victim, lab.images, lab.compute)
        suspicion = torch.zeros(len(points), device=points.device)
        flagged = torch.zeros_like(lab.labels, dtype=torch.bool)
        silhouettes = torch.full((lab.facts.classes,), torch.nan)
        sizes = silhouettes.clone()
        for label in range(lab.facts.classes):
            rows = (lab.labels == label).nonzero().flatten()
            if len(rows) < 2 * spec.components:  # too few to cluster
                continue
            seed = derive_seed("activation clustering", lab.seed, label) % 2**32
            small, margin, silhouette = split_in_two(reduce_dimensions(points[rows], spec.components), seed)
            size = small.double().mean().item()
            silhouettes[label], sizes[label] = silhouette, size
            # Weighted by the silhouette, so that suspicion is comparable across classes.
            suspicion[rows] = (margin * max(silhouette, 0.0)).to(suspicion.device)
            if size < spec.max_size and silhouette >= spec.min_silhouette:
                flagged[rows[small.to(rows.device)]] = True
        class_flagged = torch.bincount(lab.labels[flagged], minlength=lab.facts.classes) > 0
        by_class = {
            "class_silhouette": silhouettes,
            "class_small_share": sizes,
            "class_flagged": class_flagged,
        }
        return finish_detection(lab, stage, suspicion, flagged, by_class)

    return retrain_without_flagged(lab, spec.then, lab.stage("detection", detect))
