"""Mean and Student-t interval, and thinning of curves."""

import math
from collections.abc import Sequence
from functools import cache
from typing import TypeVar

from app.results.schemas import Aggregate

T = TypeVar("T")


def aggregate(values: Sequence[float]) -> Aggregate:
    """Mean of ``values`` (at least one) with its 95 % interval, which needs at least two."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Aggregate(mean=mean, low=None, high=None, n=1)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = t_quantile(0.975, n - 1) * deviation / math.sqrt(n)
    return Aggregate(mean=mean, low=mean - half, high=mean + half, n=n)


@cache
def t_quantile(p: float, df: int) -> float:
    """The quantile of Student's t distribution for ``p`` in (0.5, 1), by bisection."""
    low, high = 0.0, 1.0
    while _t_cdf(high, df) < p:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cdf(middle, df) < p else (low, middle)
    return (low + high) / 2


def _t_cdf(t: float, df: int) -> float:
    """P(T <= t) for t >= 0; Abramowitz and Stegun, 26.7.3 (odd ``df``) and 26.7.4 (even ``df``)."""
    theta = math.atan(t / math.sqrt(df))
    cosine = math.cos(theta)
    if df % 2:
        term, total = cosine, 0.0
        for k in range(1, (df - 1) // 2 + 1):
            total += term
            term *= cosine**2 * 2 * k / (2 * k + 1)
        inside = 2 / math.pi * (theta + math.sin(theta) * total)
    else:
        term, total = 1.0, 0.0
        for k in range(1, df // 2 + 1):
            total += term
            term *= cosine**2 * (2 * k - 1) / (2 * k)
        inside = math.sin(theta) * total
    return (1 + inside) / 2


def thin(points: Sequence[T], most: int) -> list[T]:
    """At most ``most`` (at least 2) of the points, evenly spread; the first and the last stay."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]
