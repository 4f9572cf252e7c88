"""From one number a seed to a mean with its interval. Pure; the service and the lab share it."""

import math
import statistics
from collections.abc import Iterable
from typing import Any

METRICS = (
    "clean_accuracy",
    "attack_success_rate",
    "robust_accuracy",
    "cross_trigger_accuracy",
    "target_image_hit",
    "clean_loss",
    "poisoned_loss",
    "train_accuracy",
    "isolation_precision",
    "isolation_recall",
    "isolation_auroc",
    "psnr",
    "ssim",
    "l_inf",
    "l_2",
    "changed_pixels",
    "seconds",
)
"""Every metric of a result, in the order in which tables show them."""

# Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom; beyond, the normal's.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def summarise(values: Iterable[float | None]) -> dict[str, float | int | None] | None:
    """Mean and 95 % Student-t interval of the values that are not None; None if there is no such value.

    A single value has no interval: ``low`` and ``high`` are None.
    """
    numbers = [value for value in values if value is not None]
    if not numbers:
        return None
    mean, n = statistics.fmean(numbers), len(numbers)
    if n == 1:
        return {"mean": mean, "low": None, "high": None, "n": 1}
    quantile = _T95[n - 2] if n - 2 < len(_T95) else 1.96
    half = quantile * statistics.stdev(numbers) / math.sqrt(n)
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def arms_document(arms: Iterable[str], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ``arms`` part of a results document from one row an arm and seed (``arm``, ``seed``, metrics)."""
    document = []
    for arm in arms:
        of_arm = sorted((row for row in rows if row["arm"] == arm), key=lambda row: row["seed"])
        names = [name for name in METRICS if any(name in row for row in of_arm)]
        document.append(
            {
                "arm": arm,
                "aggregate": {name: summarise(row.get(name) for row in of_arm) for name in names},
                "seeds": [{key: value for key, value in row.items() if key != "arm"} for row in of_arm],
            }
        )
    return document
