"""Signs of poison that `abl_plus` reads of every sample, and what is asked of such numbers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.lab.defenses import abl
from worker.lab.evaluation import auroc

FEW = 50  # members; fewer lie in two heaps by chance


@dataclass(frozen=True)
class Signs:
    """What is known of every sample ``[N]``, each in [0, 1], 1 the most suspicious."""

    speed: Tensor
    dominance: Tensor

    def of(self, rows: Tensor) -> "Signs":
        return Signs(self.speed[rows], self.dominance[rows])

    @property
    def mean(self) -> Tensor:
        return (self.speed + self.dominance) / 2

    def heaps(self, members: Tensor) -> float:
        """How far the mean of both signs parts a class, bool ``[N]``, in two: Otsu's (1979) separability, in [0, 1].

        0 if the class is too small to tell heaps from chance.
        """
        if int(members.sum()) < FEW:
            return 0.0
        return separability(self.mean[members])


def best_cut(values: Tensor) -> float:
    """Otsu's threshold: the one that leaves the least variance within the two sides."""
    ordered = values.double().sort().values
    n = len(ordered)
    if n < 2:
        return float(ordered[-1])
    left = torch.arange(1, n, dtype=torch.double)
    sums = ordered.cumsum(0)
    means_left = sums[:-1] / left
    means_right = (sums[-1] - sums[:-1]) / (n - left)
    between = left * (n - left) * (means_left - means_right) ** 2
    i = int(between.argmax())
    return float((ordered[i] + ordered[i + 1]) / 2)


def separability(values: Tensor) -> float:
    """Share of the variance of ``values`` that lies between the two sides of their best cut (Otsu 1979): 0.64 for a
    normal distribution, 0.75 for a uniform one, 1 for two points."""
    values = values.double()
    high = values > best_cut(values)
    if len(values) < 2 or not high.any():
        return 0.0
    share = high.double().mean()
    between = share * (1 - share) * (values[high].mean() - values[~high].mean()) ** 2
    return float(between / values.var(correction=0))


def ranks(values: Tensor) -> Tensor:
    """Ranks in [0, 1], 1 the highest."""
    return abl.smoothed_ranks([values]).float()


def correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation."""
    if len(a) < 3:
        return 0.0
    return float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1])


def auroc_or_half(scores: Tensor, positive: Tensor) -> float:
    """`auroc`, or one half where one of the kinds is missing."""
    return auroc(scores, positive) if positive.any() and not positive.all() else 0.5
