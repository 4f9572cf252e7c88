"""Activation clustering (Chen et al. 2018).

The features of a poisoned class form two clusters, one of the class's own images and one of triggered ones. Each
class's features are reduced and clustered by 2-means. Which cluster is poison is decided by its relative size, or by
exclusionary reclassification: what a model says of it that was trained without it (section 5).

The paper reduces by independent components. Principal components, which keep the variance of each direction, separate
better here, and the Adversarial Robustness Toolbox uses them too. If half of a class is poisoned, size does not tell
the clusters apart: by relative size nothing is flagged, and the other analyses may accuse the clean half.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from app.specs.defenses.detection import ActivationClustering
from worker.lab.compute import derive_seed
from worker.lab.data.streamed import select_rows
from worker.lab.defenses.base import DetectionDefense, copy_state
from worker.lab.defenses.detection import finish_detection, retrain_without_flagged
from worker.lab.defenses.repair import load_network
from worker.lab.evaluation import extract_features, predict_classes
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


@dataclass(frozen=True)
class Clusters:
    """The two clusters of a class."""

    rows: Tensor
    """Rows ``[n]`` of the class in the training set."""
    small: Tensor
    """bool ``[n]``: in the smaller cluster."""
    margin: Tensor
    silhouette: float

    @property
    def size(self) -> float:
        """Share of the smaller cluster in its class."""
        return self.small.double().mean().item()


def cluster_classes(spec: ActivationClustering, lab: DetectionDefense) -> dict[int, Clusters]:
    """The clusters of every class that has enough samples."""
    points = extract_features(lab.victim, lab.images, lab.compute)
    clusters = {}
    for label in range(lab.facts.classes):
        rows = (lab.labels == label).nonzero().flatten()
        if len(rows) < 2 * spec.components:  # too few to cluster
            continue
        seed = derive_seed("activation clustering", lab.seed, label) % 2**32
        small, margin, silhouette = split_in_two(reduce_dimensions(points[rows], spec.components), seed)
        clusters[label] = Clusters(rows, small.to(rows.device), margin.to(rows.device), silhouette)
    return clusters


def reclassification_score(predicted: Tensor, label: int) -> float:
    """``l / p`` of a cluster: ``l`` of its images keep their ``label``, ``p`` get the most common other class.

    ``predicted`` int64 ``[n]`` by a model that was trained without them (section 5; ART activation_defence.py:358).
    Infinite if all keep their label.
    """
    counts = torch.bincount(predicted, minlength=label + 1)
    kept = int(counts[label])
    counts[label] = 0
    other = int(counts.max())
    return kept / other if other else float("inf")


def is_poison(spec: ActivationClustering, clusters: Clusters, score: float) -> bool:
    """Whether the smaller cluster is flagged; ``score`` is its reclassification score, if it has one."""
    if not clusters.small.any():
        return False
    if spec.min_silhouette is not None and clusters.silhouette < spec.min_silhouette:
        return False
    if spec.analysis == "relative_size":
        return clusters.size < spec.max_size
    return spec.analysis == "smaller" or score <= spec.reclassification_threshold


def run(spec: ActivationClustering, lab: DetectionDefense) -> Network:
    """Cluster each class, flag suspicious clusters, and retrain."""
    reclassifying = spec.analysis == "exclusionary_reclassification"

    def train_without_smaller(stage: StageRun) -> Outcome:
        kept = torch.ones_like(lab.labels, dtype=torch.bool)
        for clusters in cluster_classes(spec, lab).values():
            kept[clusters.rows[clusters.small]] = False
        network = lab.new_network("reclassification")
        lab.fit(stage, network, replace(lab.recipe, memory={}), rows=kept.nonzero().flatten())
        return stage.finish(copy_state(network))

    without = (
        load_network(lab, lab.stage("reclassification", train_without_smaller)) if reclassifying else None
    )

    def detect(stage: StageRun) -> Outcome:
        suspicion = torch.zeros(len(lab.labels), device=lab.labels.device)
        flagged = torch.zeros_like(lab.labels, dtype=torch.bool)
        silhouettes = torch.full((lab.facts.classes,), torch.nan)
        sizes, scores = silhouettes.clone(), silhouettes.clone()
        class_flagged = torch.zeros(lab.facts.classes, dtype=torch.bool)
        for label, clusters in cluster_classes(spec, lab).items():
            silhouettes[label], sizes[label] = clusters.silhouette, clusters.size
            suspects = clusters.rows[clusters.small]
            if without is not None and len(suspects):
                predicted = predict_classes(without, select_rows(lab.images, suspects), lab.compute)
                scores[label] = reclassification_score(predicted, label)
            if is_poison(spec, clusters, scores[label].item()):
                class_flagged[label] = True
                flagged[suspects] = True
                # Weighted by the silhouette, so that suspicion is comparable across classes. Classes in which nothing
                # is flagged keep zero: there the method does not say which cluster would be the poison.
                suspicion[clusters.rows] = clusters.margin * max(clusters.silhouette, 0.0)
        by_class = {
            "class_silhouette": silhouettes,
            "class_small_share": sizes,
            "class_flagged": class_flagged,
        }
        if reclassifying:
            by_class["class_reclassification_score"] = scores
        return finish_detection(lab, stage, suspicion, flagged, by_class)

    return retrain_without_flagged(lab, spec.then, lab.stage("detection", detect))
