"""Beatrix (Ma et al. 2023), from the authors' code, wanlunsec/Beatrix defenses/Beatrix/Beatrix.py (lines in brackets).

A trigger changes how the channels of a feature map go together. For every class, the Gram matrices of the maps and of
their powers have a usual range on clean images: the median and ten median absolute deviations on either side. A
sample's deviation is how far its own matrices leave the range of the class that the victim gives it. The threshold is
a quantile of the clean images' deviations from each other, by five-fold cross-validation. A class is infected if its
samples above and below the threshold differ far more than in other classes [441-502].
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from app.specs.defenses.purification import Beatrix
from worker.lab.data.streamed import Images, select_rows
from worker.lab.defenses.base import DetectionDefense
from worker.lab.defenses.detection import finish_detection, median_and_deviation, retrain_without_flagged
from worker.lab.evaluation import extract_with, predict_classes
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun

POWERS = range(1, 9)  # [410]
WIDTH = 10.0  # median absolute deviations on either side [329]
FOLDS = 5  # [390]
SMALLEST = 1e-6  # keeps divisors from zero [365]
COMPARED = 500  # samples of either group, at most, as in BackdoorBench (beatrix.py:473)
CHUNK = 2**24  # values of Gram matrices that are held at a time


def gram_features(maps: Tensor, power: int) -> Tensor:
    """The upper triangle ``[n, C (C + 1) / 2]`` of ``(F^p F^pT)^(1/p)``, of maps ``[n, C, H, W]`` [332-341]."""
    flat = maps.flatten(2).double() ** power
    gram = flat @ flat.transpose(1, 2)
    rows, columns = torch.triu_indices(maps.shape[1], maps.shape[1], device=maps.device)
    upper = gram[:, rows, columns]
    return upper.sign() * upper.abs() ** (1 / power)


class ClassRanges:
    """The usual range of every entry of the Gram matrices, of one class."""

    def __init__(self, maps: Tensor) -> None:
        """From clean maps ``[n, C, H, W]``."""
        self.channels = maps.shape[1]
        self.low, self.high = [], []
        for power in POWERS:
            features = gram_features(maps, power)
            median = features.median(0).values
            width = WIDTH * (features - median).abs().median(0).values
            self.low.append(median - width)
            self.high.append(median + width)

    def deviations(self, maps: Tensor) -> Tensor:
        """How far each of ``[n, C, H, W]`` leaves the ranges ``[n]``, relative to them [358-371]."""
        total = torch.zeros(len(maps), dtype=torch.float64, device=maps.device)
        for power, low, high in zip(POWERS, self.low, self.high, strict=True):
            features = gram_features(maps, power)
            total += (F.relu(low - features) / (low + SMALLEST).abs()).sum(1)
            total += (F.relu(features - high) / (high + SMALLEST).abs()).sum(1)
        return total / (self.channels**2 / 2) / len(POWERS)


def cross_validate(maps: Tensor) -> Tensor:
    """Deviations of clean maps ``[n, C, H, W]`` from the ranges of the other four fifths [388-398]."""
    size = len(maps) // FOLDS
    parts = []
    for fold in range(FOLDS):
        held_out = torch.zeros(len(maps), dtype=torch.bool, device=maps.device)
        held_out[fold * size : (fold + 1) * size] = True
        parts.append(ClassRanges(maps[~held_out]).deviations(maps[held_out]))
    return torch.cat(parts)


def kernel_distance(first: Tensor, second: Tensor) -> float:
    """The maximum mean discrepancy of ``[n, D]`` and ``[m, D]`` times ``n m / (n + m)`` [294-305].

    With two Gaussian kernels, of the median squared distance and of half of it.
    """
    n, m = len(first), len(second)
    if not n or not m:
        return 0.0
    squares = torch.cdist(torch.cat([first, second]), torch.cat([first, second])).square()
    width = squares.flatten().median().clamp(min=1e-12)
    kernel = (-squares / width).exp() + (-2 * squares / width).exp()
    difference = kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()
    return (n * m / (n + m) * difference).item()


def extract_maps(lab: DetectionDefense, images: Images) -> Tensor:
    """The last maps of the resolution before the last, ``[N, C, H, W]``: of a ResNet what layer4 is given [57]."""
    return extract_with(lab.victim, lambda x: lab.victim.stage_maps(x)[-2], images, lab.compute)


def batches_of(rows: Tensor, channels: int) -> Iterator[Tensor]:
    """``rows`` in parts whose Gram matrices fit."""
    yield from rows.split(max(1, CHUNK // channels**2))


def run(spec: Beatrix, lab: DetectionDefense) -> Network:
    """Learn every class's ranges, flag what leaves them, in infected classes or in all, and retrain."""
    assert lab.clean is not None
    clean = lab.clean.images

    def detect(stage: StageRun) -> Outcome:
        device = lab.labels.device
        clean_maps, clean_classes = extract_maps(lab, clean), predict_classes(lab.victim, clean, lab.compute)
        classes = predict_classes(lab.victim, lab.images, lab.compute)
        suspicion = torch.zeros(len(classes), dtype=torch.float64, device=device)
        over = torch.zeros(len(classes), dtype=torch.bool, device=device)
        difference = torch.full((lab.facts.classes,), torch.nan, dtype=torch.float64)
        few = []
        for label in range(lab.facts.classes):
            maps = clean_maps[clean_classes == label]
            rows = (classes == label).nonzero().flatten()
            if len(maps) < FOLDS:
                few.append(lab.facts.class_names[label])
                continue
            ordered = cross_validate(maps).sort().values
            threshold = ordered[int(len(ordered) * spec.clean_quantile)].clamp(min=SMALLEST)
            ranges = ClassRanges(maps)
            pooled = []
            for part in batches_of(rows, maps.shape[1]):
                stage.recorder.check()
                features = extract_maps(lab, select_rows(lab.images, part))
                suspicion[part] = ranges.deviations(features) / threshold
                pooled.append(features.mean((2, 3)))
            if not pooled:
                continue
            over[rows] = suspicion[rows] > 1
            points = torch.cat(pooled)
            difference[label] = kernel_distance(points[~over[rows]][:COMPARED], points[over[rows]][:COMPARED])
        if few:
            lab.warn(
                stage,
                f"fewer than {FOLDS} clean images are recognized as {', '.join(few)}; samples of these classes are not "
                "inspected, so raise clean_ratio",
            )
        known = difference.isfinite()
        median, deviation = (
            median_and_deviation(difference[known]) if known.any() else (torch.tensor(0.0),) * 2
        )
        anomaly = (difference - median).abs() / (deviation + SMALLEST)
        infected = (anomaly > spec.threshold).to(device)
        flagged = over & infected[classes] if spec.classes == "infected" else over
        by_class = {
            "class_kernel_distance": difference.float(),
            "class_anomaly_index": anomaly.float(),
            "class_flagged": infected,
        }
        return finish_detection(lab, stage, suspicion.float(), flagged, by_class)

    return retrain_without_flagged(lab, spec.then, lab.stage("detection", detect))
