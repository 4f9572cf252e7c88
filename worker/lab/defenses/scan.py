"""SCAn, statistical contamination analysis (Tang et al. 2021), from the authors' code, TDteach/Demon-in-the-Variant
pysrc/SCAn.py (lines in brackets).

A feature is the sum of its class's mean and of a variation that has the same covariance in all classes.
Both covariances are estimated by EM on clean images [33]. A contaminated class is a mixture of two means: it is split
in two under the covariance of the variation, and the likelihood ratio of two means to one is compared among classes
[189]. In an outlying class the part with fewer of the clean images is flagged, as in backdoor-toolbox,
cleansers_tool_box/scan.py:283-313.

The single mean is estimated as the class means of the EM are. In the authors' calc_test the factor Su Se^-1 of that
estimate is missing [193], so that theirs is no mean of the class.
"""

import torch
from torch import Tensor

from app.specs.defenses.purification import Scan
from worker.lab.compute import seeded_generator
from worker.lab.defenses.base import DetectionDefense
from worker.lab.defenses.detection import finish_detection, median_and_deviation, retrain_without_flagged
from worker.lab.evaluation import extract_features
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun

ITERATIONS = 100  # at most, of either EM
TOLERANCE = 1e-2  # of both covariances together, in Frobenius norms


def invert(matrix: Tensor) -> Tensor:
    """The pseudo-inverse of a symmetric matrix."""
    inverse: Tensor = torch.linalg.pinv(matrix, hermitian=True)
    return inverse


def estimate_means(between: Tensor, within: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
    """The expected mean of each class ``[K, D]``, given the sum ``[K, D]`` of its ``counts`` samples.

    ``between (n between + within)^-1 sum``: the posterior of a mean drawn with covariance ``between``.
    """
    means = torch.zeros_like(sums)
    for count in counts.unique().tolist():  # classes of one size share the inverse
        classes = counts == count
        means[classes] = sums[classes] @ (between @ invert(count * between + within)).T
    return means


def decompose(points: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The covariances ``[D, D]`` between classes and within them, of ``points`` ``[n, D]`` with mean 0."""
    counts = labels.bincount(minlength=classes)
    sums = torch.zeros(classes, points.shape[1], dtype=points.dtype).index_add(0, labels, points)
    means = sums / counts.clamp(min=1)[:, None]
    between, within = means[labels].T.cov(), (points - means[labels]).T.cov()
    for _ in range(ITERATIONS):
        means = estimate_means(between, within, sums, counts)
        last = between, within
        between, within = means[labels].T.cov(), (points - means[labels]).T.cov()
        if (between - last[0]).norm() + (within - last[1]).norm() <= TOLERANCE:
            break
    return between, within


def split_class(points: Tensor, precision: Tensor, generator: torch.Generator) -> Tensor:
    """bool ``[n]``: the half of a mixture of two means with one covariance, by EM with hard assignments."""
    in_first = torch.rand(len(points), generator=generator) >= 0.5
    for _ in range(ITERATIONS):
        if in_first.all() or not in_first.any():
            break
        new = lean(points, in_first, precision) > 0
        if torch.equal(new, in_first):
            break
        in_first = new
    return in_first


def lean(points: Tensor, in_first: Tensor, precision: Tensor) -> Tensor:
    """How much nearer each of ``points`` ``[n, D]`` is to the first part's mean: a difference of squares ``[n]``."""
    first, second = points[in_first].mean(0), points[~in_first].mean(0)
    return squares(points - second, precision) - squares(points - first, precision)


def squares(differences: Tensor, precision: Tensor) -> Tensor:
    """Squared lengths ``[n]`` of ``[n, D]`` under ``precision``."""
    return ((differences @ precision) * differences).sum(1)


def likelihood_ratio(points: Tensor, in_first: Tensor, mean: Tensor, precision: Tensor) -> float:
    """Twice the logarithm of two means' likelihood over one mean's, per sample."""
    total = squares(points - mean, precision).sum()
    for part in (points[in_first], points[~in_first]):
        if len(part):
            total -= squares(part - part.mean(0), precision).sum()
    return (total / len(points)).item()


def run(spec: Scan, lab: DetectionDefense) -> Network:
    """Estimate the covariances on the clean set, test every class, flag a part of the outlying ones, and retrain."""
    assert lab.clean is not None
    clean = lab.clean

    def detect(stage: StageRun) -> Outcome:
        clean_points = extract_features(lab.victim, clean.images, lab.compute).cpu().double()
        clean_labels = torch.cat([clean.fit.labels, clean.held_out.labels]).cpu()
        points = extract_features(lab.victim, lab.images, lab.compute).cpu().double()
        labels, classes = lab.labels.cpu(), lab.facts.classes
        between, within = decompose(clean_points - clean_points.mean(0), clean_labels, classes)
        precision = invert(within)
        if len(clean_points) <= points.shape[1]:
            lab.warn(
                stage,
                f"{len(clean_points)} clean images are too few for the covariance of {points.shape[1]} features; raise "
                "clean_ratio",
            )
        everything, all_labels = torch.cat([points, clean_points]), torch.cat([labels, clean_labels])
        everything = everything - everything.mean(0)
        generator = seeded_generator(torch.device("cpu"), stage.planned.stream)
        parts, ratios = {}, torch.full((classes,), torch.nan, dtype=torch.float64)
        for label in range(classes):
            stage.recorder.check()
            rows = (all_labels == label).nonzero().flatten()
            if len(rows) < 2:
                continue
            x = everything[rows]
            in_first = split_class(x, precision, generator)
            mean = estimate_means(between, within, x.sum(0, keepdim=True), torch.tensor([len(rows)]))
            ratios[label] = likelihood_ratio(x, in_first, mean, precision)
            parts[label] = rows, in_first
        median, deviation = median_and_deviation(ratios[list(parts)])
        anomaly = (ratios - median).abs() / deviation.clamp(min=1e-12)
        suspicion = torch.zeros(len(points), dtype=torch.float64)
        flagged = torch.zeros(len(points), dtype=torch.bool)
        for label, (rows, in_first) in parts.items():
            if anomaly[label] <= spec.threshold or in_first.all() or not in_first.any():
                continue
            is_clean = rows >= len(points)
            suspects = ~in_first if (in_first & is_clean).sum() >= (~in_first & is_clean).sum() else in_first
            inspected = rows[~is_clean]
            flagged[inspected] = suspects[~is_clean]
            suspicion[inspected] = lean(everything[rows], suspects, precision)[~is_clean]
        by_class = {
            "class_likelihood_ratio": ratios.float(),
            "class_anomaly_index": anomaly.float(),
            "class_flagged": anomaly > spec.threshold,
        }
        return finish_detection(lab, stage, suspicion.float(), flagged.to(lab.labels.device), by_class)

    return retrain_without_flagged(lab, spec.then, lab.stage("detection", detect))
