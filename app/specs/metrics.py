"""The metrics of a result, and their means over seeds with confidence intervals."""

import math
import statistics
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

OF_INPUTS = (
    "input_auroc",
    "input_tpr_at_1_percent",
    "input_tpr_at_5_percent",
    "input_true_positive_rate",
    "input_false_positive_rate",
)
"""Metrics of input detections."""

OF_STAGES = (
    "accuracy_before_unlearning",
    "attack_success_before_unlearning",
    "isolation_precision",
    "isolation_recall",
    "isolation_auroc",
    "false_positive_rate",
    "target_class_precision",
    "target_class_auroc",
    "true_positives",
    "false_positives",
    "true_negatives",
    "false_negatives",
    "pseudo_label_accuracy",
    "clean_subset_purity",
    "target_class_found",
    "wrong_classes_flagged",
    "anomaly_index",
    "smallest_mask_norm",
    "median_mask_norm",
    "mad_mask_norm",
    *OF_INPUTS,
)
"""Metrics that the stages of a defense record; the last value counts."""

OF_ATTACKER = (
    "attacker_clean_accuracy",
    "attacker_attack_success_rate",
    "attacker_cross_trigger_accuracy",
)
"""Metrics of the undefended arm: those of the model that the attacker trained, with control over its training."""

METRICS = (
    "clean_accuracy",
    "attack_success_rate",
    "robust_accuracy",
    "defense_effectiveness",
    "cross_trigger_accuracy",
    "target_image_hit",
    *OF_ATTACKER,
    "clean_loss",
    "poisoned_loss",
    "train_accuracy",
    *OF_STAGES,
    "psnr",
    "ssim",
    "l_inf",
    "l_2",
    "changed_pixels",
    "seconds",
)
"""Every metric of a result, in the order in which tables show them."""

NOT_FRACTIONS = frozenset(
    {
        "clean_loss",
        "poisoned_loss",
        "true_positives",
        "false_positives",
        "true_negatives",
        "false_negatives",
        "wrong_classes_flagged",
        "anomaly_index",
        "smallest_mask_norm",
        "median_mask_norm",
        "mad_mask_norm",
        "psnr",
        "l_inf",
        "l_2",
        "seconds",
    }
)
"""Metrics that are not fractions in [0, 1]. All others are shown to people in percent."""


def summarize(values: Iterable[float | None]) -> dict[str, float | int | None] | None:
    """Mean and 95 % Student t interval of the values that are not None; None if there are none.

    A single value has no interval: ``low`` and ``high`` are None.
    """
    numbers = [value for value in values if value is not None]
    if not numbers:
        return None
    mean, n = statistics.fmean(numbers), len(numbers)
    if n == 1:
        return {"mean": mean, "low": None, "high": None, "n": 1}
    half = t_quantile(0.975, n - 1) * statistics.stdev(numbers) / math.sqrt(n)
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def format_interval(mean: float, low: float | None, high: float | None, scale: float = 100) -> str:
    """``scale`` times the mean and half the width of its interval, such as ``97.2 ± 0.4``; else the mean alone."""
    if low is None or high is None:
        return f"{scale * mean:.1f}"
    return f"{scale * mean:.1f} ± {scale * (high - low) / 2:.1f}"


EFFECTIVENESS = "defense_effectiveness"
"""The metric computed by `defense_effectiveness`, of defended arms only: it compares them with the undefended arm."""


def defense_effectiveness(
    before: Mapping[str, float | None], after: Mapping[str, float | None]
) -> float | None:
    """The defense effectiveness rating (Wu et al. 2022): ``(max(0, ASR drop) - max(0, CA drop) + 1) / 2``.

    ``before`` and ``after`` are metrics of the undefended and the defended arm of one experiment and seed. The rating
    is in [0, 1]: 0.5 is no effect, 1 a backdoor removed at no cost. None if a metric is missing.
    """
    names = ("attack_success_rate", "clean_accuracy")
    drops = [(before.get(name), after.get(name)) for name in names]
    attack, clean = (max(0.0, b - a) if b is not None and a is not None else None for b, a in drops)
    return None if attack is None or clean is None else (attack - clean + 1) / 2


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


def arms_document(arms: Iterable[str], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ``arms`` of a results document. Each row has an ``arm``, a ``seed`` and their metrics."""
    document = []
    for arm in arms:
        arm_rows = sorted((row for row in rows if row["arm"] == arm), key=lambda row: row["seed"])
        names = [name for name in METRICS if any(name in row for row in arm_rows)]
        document.append(
            {
                "arm": arm,
                "aggregate": {name: summarize(row.get(name) for row in arm_rows) for name in names},
                "seeds": [{key: value for key, value in row.items() if key != "arm"} for row in arm_rows],
            }
        )
    return document
