"""SPECTRE (Hayase et al. 2021), from the authors' code, SewoongLab/spectre-defense (files and lines in brackets).

As in spectral signatures, the features of a poisoned class are a mixture, but the poison hides in directions of little
variance. So the clean samples' covariance is estimated robustly and the features are whitened by it: what remains
spread is poison. A sample's score weights the directions by how spread they are, the quantum entropy score
[quantum_filters.jl:3]. The number of principal components is the one that leaves the most spread when everything is
whitened by what is kept [quantum_filters.jl:26]. The class is the one with the most spread, as in backdoor-toolbox,
cleanser.py:284-299.
"""

import math

import torch
from torch import Tensor

from app.specs.defenses.purification import Spectre
from worker.lab.defenses.base import DetectionDefense
from worker.lab.defenses.detection import finish_detection, retrain_without_flagged
from worker.lab.evaluation import extract_features
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun

ALPHA = 4.0  # sharpness of the score's weights
REMOVED, TRIMMED = (
    1.5,
    2.0,
)  # times the number of poisoned samples: flagged, and trimmed for the robust covariance
MOST_COMPONENTS, TRIED = 64, 8
# In a small class some components are nearly constant, and whitening makes any sample outside of it a giant.
SAMPLES_PER_COMPONENT = 10
CONFIDENCE = 0.1  # tau, the probability with which the robust estimate may fail
TAIL = 10.0  # C [dkk17.jl:39]
SHIFT = 3.0  # of the threshold on a sample's deviation [dkk17.jl:75]
POWER_ITERATIONS, CONVERGED = 100, 1e-3  # at most, and the relative change of the eigenvalue that ends them
RIDGE = 1e-8  # on covariances, times their mean variance
MOST_SHARE, SMALL_CLASS, MOST_SHARE_OF_SMALL = (
    0.33,
    500,
    0.1,
)  # of poison in a class [toolbox run_filters.jl:17-27]


def principal_components(points: Tensor, count: int) -> Tensor:
    """``[n, D]`` centered and projected on its first ``count`` principal components."""
    centered = points - points.mean(0)
    axes = torch.linalg.eigh(centered.T @ centered).eigenvectors
    projected: Tensor = centered @ axes.flip(1)[:, :count]
    return projected


def whiten(points: Tensor, covariance: Tensor) -> Tensor:
    """``[n, D]`` times the inverse square root of ``covariance``."""
    values, axes = torch.linalg.eigh(covariance)
    values = values.clamp(min=0) + RIDGE * values.mean().clamp(min=1e-12)
    white: Tensor = points @ (axes * values.rsqrt()) @ axes.T
    return white


def covariance_of(points: Tensor) -> Tensor:
    """``[D, D]`` of ``[n, D]``."""
    covariance: Tensor = points.T.cov()
    return covariance.view(points.shape[1], points.shape[1])  # torch gives a scalar for one dimension


def entropy_weights(spread: Tensor) -> Tensor:
    """The density matrix ``exp(alpha (spread - I) / (|spread| - 1))`` of trace 1 [quantum_filters.jl:16]."""
    values, axes = torch.linalg.eigh(spread)
    exponents = ALPHA * (values - 1) / (values.abs().max() - 1).clamp(min=1e-6)
    # Only ratios matter after the division by the trace.
    weights = (exponents - exponents.max()).exp()
    density: Tensor = (axes * (weights / weights.sum())) @ axes.T
    return density


def trim(points: Tensor, poisoned: int) -> Tensor:
    """bool ``[n]``: the samples of ``[n, D]`` that the robust covariance is computed from.

    The filter of Diakonikolas et al. 2017 [dkk17.jl:32-130]: as long as some quadratic form of the whitened samples
    varies more than a Gaussian's, those with the most extreme values of it leave, at most twice ``poisoned`` in all.
    """
    kept = torch.arange(len(points))
    left = round(TRIMMED * poisoned)
    while left > 0:
        chosen = _filter(points[kept], poisoned / len(points), left)
        if chosen is None:
            break
        left -= len(kept) - int(chosen.sum())
        kept = kept[chosen]
    mask = torch.zeros(len(points), dtype=torch.bool)
    mask[kept] = True
    return mask


def _filter(points: Tensor, share: float, most: int) -> Tensor | None:
    """One round: bool ``[n]``, all but ``most`` of which are True; None if the samples look Gaussian."""
    n, dimensions = points.shape
    white = whiten(points, points.T @ points / n)
    lengths = white.square().sum(1)
    if (far := lengths >= TAIL * dimensions * math.log(n / CONFIDENCE)).any():
        return _without_highest(lengths, ~far, most)
    # The quadratic form x' form x that varies most: the top eigenvector of the centered fourth moments.
    form = torch.ones(dimensions, dimensions, dtype=points.dtype) / dimensions
    value = 0.0
    for _ in range(POWER_ITERATIONS):
        forms = (white @ form * white).sum(1)
        product = white.T @ (forms[:, None] * white) / n - form.trace() * torch.eye(dimensions)
        last, value = value, product.norm().item()
        form = product / max(value, 1e-12)
        if abs(value - last) <= CONVERGED * value:
            break
    if value <= 1 + TAIL * share * math.log(1 / share) ** 2:
        return None
    deviations = ((white @ form * white).sum(1) - form.trace()) / math.sqrt(2)
    deviations = (deviations - deviations.quantile(0.5)).abs()
    for i, threshold in enumerate((deviations.sort().values - SHIFT).tolist(), 1):
        # The share below, as in the authors' code; in BackdoorBench's translation, the share above, which hardly ever
        # lets a sample go (spectre_utils.py:110).
        if threshold > 0 and i / n >= _tail(threshold, share):
            return _without_highest(deviations, deviations <= threshold, most)
    return None


def _tail(threshold: float, share: float) -> float:
    """The share of samples beyond ``threshold`` that a Gaussian with ``share`` of poison may have [dkk17.jl:7]."""
    if threshold <= 10 * math.log(1 / share):
        return 1.0
    return 3 * share / (threshold * math.log(threshold)) ** 2


def _without_highest(scores: Tensor, kept: Tensor, most: int) -> Tensor | None:
    """``kept``, and the lowest of the others if these are more than ``most``; None if nothing leaves."""
    kept = kept.clone()
    kept[scores.argsort()[: max(0, len(scores) - most)]] = True
    return None if kept.all() else kept


def score_samples(points: Tensor, poisoned: int) -> Tensor:
    """The quantum entropy scores ``[n]`` of principal components ``[n, k]`` [quantum_filters.jl:3-23]."""
    if points.shape[1] == 1:
        return points[:, 0].square()
    white = whiten(points, covariance_of(points[trim(points, poisoned)]))
    weights = entropy_weights(covariance_of(white))
    return (white @ weights * white).sum(1)


def filter_class(points: Tensor, poisoned: int) -> tuple[Tensor, Tensor, float]:
    """(scores ``[n]``, flagged bool ``[n]``, spread of the class) of features ``[n, D]`` [quantum_filters.jl:26-44]."""
    most = max(1, min(MOST_COMPONENTS, points.shape[1], len(points) // SAMPLES_PER_COMPONENT))
    components = principal_components(points, most)
    sizes = {round(x.item()) for x in torch.linspace(1, math.sqrt(most), TRIED).square()}
    best: tuple[Tensor, Tensor, float] | None = None
    for size in sorted(sizes):
        scores = score_samples(components[:, :size], poisoned)
        flagged = torch.zeros(len(points), dtype=torch.bool)
        flagged[scores.argsort(descending=True, stable=True)[: round(REMOVED * poisoned)]] = True
        spread = covariance_of(whiten(components, covariance_of(components[~flagged])))
        value = (spread * entropy_weights(spread)).sum().item()
        if best is None or value > best[2]:
            best = scores, flagged, value
    assert best is not None
    return best


def poison_in_class(spec: Spectre, size: int, samples: int) -> int:
    """The assumed number of poisoned samples in a class of ``size``, of ``samples`` in all."""
    share = MOST_SHARE_OF_SMALL if size < SMALL_CLASS else MOST_SHARE
    return max(1, min(round(spec.expected_rate * samples), round(share * size)))


def run(spec: Spectre, lab: DetectionDefense) -> Network:
    """Score every class, flag the highest scores of the most spread class or of all, and retrain."""

    def detect(stage: StageRun) -> Outcome:
        points = extract_features(lab.victim, lab.images, lab.compute).cpu().double()
        labels = lab.labels.cpu()
        suspicion = torch.zeros(len(points), dtype=torch.float64)
        flagged = torch.zeros(len(points), dtype=torch.bool)
        spreads = torch.full((lab.facts.classes,), -torch.inf)
        for label in range(lab.facts.classes):
            stage.recorder.check()
            rows = (labels == label).nonzero().flatten()
            if len(rows) < 4:
                continue
            poisoned = poison_in_class(spec, len(rows), len(points))
            scores, highest, spreads[label] = filter_class(points[rows], poisoned)
            suspicion[rows], flagged[rows] = scores, highest
        suspected = torch.ones(lab.facts.classes, dtype=torch.bool)
        if spec.classes == "most_spread":
            suspected = torch.zeros_like(suspected).index_fill(0, spreads.argmax(), True)
        flagged &= suspected[labels]
        # Whitened features of different classes have no common scale: where one class is named, only it has scores.
        suspicion[~suspected[labels]] = 0
        by_class = {"class_spread": spreads, "class_flagged": suspected & spreads.isfinite()}
        return finish_detection(lab, stage, suspicion.float(), flagged.to(lab.labels.device), by_class)

    return retrain_without_flagged(lab, spec.then, lab.stage("detection", detect))
