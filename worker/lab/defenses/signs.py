"""Per-sample signs of poison that `abl_plus` computes, and statistics on them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.lab.defenses import abl
from worker.lab.evaluation import auroc

MIN_MEMBERS = 50  # smaller classes look bimodal by chance


@dataclass(frozen=True)
class Signs:
    """Two suspicion scores of every sample, ``[N]`` each, in [0, 1]; 1 is the most suspicious."""

    speed: Tensor
    dominance: Tensor

    def of(self, rows: Tensor) -> "Signs":
        return Signs(self.speed[rows], self.dominance[rows])

    @property
    def mean(self) -> Tensor:
        return (self.speed + self.dominance) / 2

    def bimodality(self, members: Tensor) -> float:
        """Otsu's (1979) separability of the mean of both signs over a class (bool ``[N]``), in [0, 1].

        0 if the class has fewer than `MIN_MEMBERS` members.
        """
        if int(members.sum()) < MIN_MEMBERS:
            return 0.0
        return separability(self.mean[members])


def otsu_threshold(values: Tensor) -> float:
    """Otsu's (1979) threshold: it maximizes the variance between the two groups that it separates."""
    ordered = values.double().sort().values
    n = len(ordered)
    if n < 2:
        return float(ordered[-1])
    left = torch.arange(1, n, dtype=torch.double)
    sums = ordered.cumsum(0)
    means_left = sums[:-1] / left
    means_right = (sums[-1] - sums[:-1]) / (n - left)
    # Exact over all n - 1 cuts of the sorted values, not over the bins of a histogram.
    between = left * (n - left) * (means_left - means_right) ** 2
    i = int(between.argmax())
    return float((ordered[i] + ordered[i + 1]) / 2)


def separability(values: Tensor) -> float:
    """Share of the variance of ``values`` that lies between the two sides of Otsu's threshold (Otsu 1979).

    0.64 for a normal distribution, 0.75 for a uniform one, 1 for two points.
    """
    values = values.double()
    high = values > otsu_threshold(values)
    if len(values) < 2 or not high.any():
        return 0.0
    share = high.double().mean()
    between = share * (1 - share) * (values[high].mean() - values[~high].mean()) ** 2
    return float(between / values.var(correction=0))


def unit_ranks(values: Tensor) -> Tensor:
    """Ranks scaled to [0, 1]; 1 is the highest."""
    return abl.smoothed_ranks([values]).float()


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation; 0 for fewer than three values."""
    if len(a) < 3:
        return 0.0
    return float(torch.corrcoef(torch.stack([unit_ranks(a), unit_ranks(b)]))[0, 1])


def auroc_or_half(scores: Tensor, positive: Tensor) -> float:
    """`auroc`, or 0.5 if ``positive`` is all True or all False."""
    return auroc(scores, positive) if positive.any() and not positive.all() else 0.5
