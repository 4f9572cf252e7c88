"""Whether two runs of one spec agree. Pure functions.

On the same kind of CPU, with the same code, data, packages and number of threads, every number must be equal bit for
bit. On a GPU without deterministic kernels, another processor or another version of torch, sums are added in another
order and training amplifies the difference, so numbers must only be close.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from app.experiments.reproductions.schemas import Difference, MetricAgreement, Tolerance
from app.specs.metrics import NOT_FRACTIONS

FRACTION_TOLERANCE = 0.02
"""Absolute. About four standard errors of an accuracy near 0.5 or 0.9 on 10,000 test images."""
RELATIVE_TOLERANCE = 0.05
"""Relative to the larger number, for metrics that are not fractions: losses, distances in pixels."""
NEVER_EQUAL = frozenset({"seconds"})

_DECISIVE = (
    "device.type",
    "device.name",
    "device.threads",
    "device.bfloat16",
    "device.compile",
    "packages.torch",
    "packages.numpy",
    "packages.torchvision",
    "packages.scikit-learn",
    "code.sha256",
    "code.lab_version",
    "code.plugins",
    "data.sha256",
    "victim_sha256",
)

Key = tuple[str, int, str]
"""Arm, seed, metric."""


def environment(original: Mapping[str, Any] | None, again: Mapping[str, Any] | None) -> list[Difference]:
    """The fields that decide numbers and differ between two manifests."""
    if original is None or again is None:
        return []
    pairs = ((name, _at(original, name), _at(again, name)) for name in _DECISIVE)
    return [Difference(field=name, original=a, again=b) for name, a, b in pairs if a != b]


def tolerance(original: Mapping[str, Any] | None, again: Mapping[str, Any] | None) -> Tolerance:
    """How far apart numbers may be and still agree."""
    near = {"fractions": FRACTION_TOLERANCE, "others": RELATIVE_TOLERANCE}
    if original is None or again is None:
        return Tolerance(**near, reason="a manifest is missing, so the environments may differ")
    differing = environment(original, again)
    if differing:
        names = ", ".join(difference.field for difference in differing)
        return Tolerance(**near, reason=f"the environments differ: {names}")
    if _at(again, "device.type") != "cpu":
        return Tolerance(**near, reason="GPU kernels may add in another order each time")
    return Tolerance(fractions=0, others=0, reason="the same kind of CPU, code, data and packages")


def compare(
    original: Mapping[Key, float | None], again: Mapping[Key, float | None], allowed: Tolerance
) -> list[MetricAgreement]:
    """One comparison for each metric; a metric that only one run has does not agree."""
    return list(_compare(original, again, allowed))


def _compare(
    original: Mapping[Key, float | None], again: Mapping[Key, float | None], allowed: Tolerance
) -> Iterator[MetricAgreement]:
    for key in dict.fromkeys((*original, *again)):
        arm, seed, metric = key
        if metric in NEVER_EQUAL:
            continue
        a, b = original.get(key), again.get(key)
        both = a is not None and b is not None
        limit = (
            allowed.others * max(abs(a or 0), abs(b or 0)) if metric in NOT_FRACTIONS else allowed.fractions
        )
        difference = b - a if a is not None and b is not None else None
        agrees = key in original and key in again and (a == b or (both and _near(difference, limit)))
        yield MetricAgreement(
            arm=arm,
            seed=seed,
            metric=metric,
            original=a,
            again=b,
            difference=difference,
            tolerance=limit,
            agrees=agrees,
        )


def _near(difference: float | None, limit: float) -> bool:
    return difference is not None and math.isfinite(difference) and abs(difference) <= limit


def _at(manifest: Mapping[str, Any], path: str) -> Any:
    value: Any = manifest
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
