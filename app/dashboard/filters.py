"""The filters of the templates, which format numbers, times and names."""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from app.core.database import utcnow
from app.specs.metrics import NOT_FRACTIONS, format_interval
from app.specs.models.base import label_of

METRICS = {
    "clean_accuracy": "Clean accuracy",
    "attack_success_rate": "Attack success",
    "robust_accuracy": "Robust accuracy",
    "defense_effectiveness": "Defense effectiveness",
    "cross_trigger_accuracy": "Accuracy under foreign triggers",
    "target_image_hit": "Target image hit",
    "attacker_clean_accuracy": "Attacker's model: clean accuracy",
    "attacker_attack_success_rate": "Attacker's model: attack success",
    "attacker_cross_trigger_accuracy": "Attacker's model: accuracy under foreign triggers",
    "clean_loss": "Clean loss",
    "poisoned_loss": "Poisoned loss",
    "train_accuracy": "Training accuracy",
    "accuracy_before_unlearning": "Accuracy before unlearning",
    "attack_success_before_unlearning": "Attack success before unlearning",
    "isolation_precision": "Isolation precision",
    "isolation_recall": "Isolation recall",
    "isolation_auroc": "Isolation AUROC",
    "false_positive_rate": "False positive rate",
    "target_class_precision": "Precision in the target class",
    "target_class_auroc": "AUROC in the target class",
    "true_positives": "True positives",
    "false_positives": "False positives",
    "true_negatives": "True negatives",
    "false_negatives": "False negatives",
    "pseudo_label_accuracy": "Pseudo-label accuracy",
    "clean_subset_purity": "Purity of the clean subset",
    "target_class_found": "Target class found",
    "wrong_classes_flagged": "Wrong classes flagged",
    "anomaly_index": "Anomaly index",
    "smallest_mask_norm": "Smallest mask norm",
    "median_mask_norm": "Median mask norm",
    "mad_mask_norm": "MAD of mask norms",
    "input_auroc": "Input AUROC",
    "input_tpr_at_1_percent": "Inputs found at 1 % false positives",
    "input_tpr_at_5_percent": "Inputs found at 5 % false positives",
    "input_true_positive_rate": "Triggered inputs flagged",
    "input_false_positive_rate": "Clean inputs flagged",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "l_inf": "Largest change",
    "l_2": "l2 norm of the change",
    "changed_pixels": "Changed pixels",
    "seconds": "Seconds",
}
UNITS = {"seconds": "s", "psnr": "dB", "l_inf": "gray levels", "l_2": "gray levels"}
"""Units of metrics that are not fractions; the others have none."""
STAGES = {
    "poisoned_set": "poison the training set",
    "victim": "train",
    "isolation": "isolate suspects",
    "finetune": "fine-tune",
    "signs": "look for two kinds in a class",
    "smaller_sides": "train without the smaller sides",
    "larger_sides": "train without the larger sides",
    "power": "train with decoys",
    "verdict": "judge both sides",
    "retraining": "retrain",
    "unlearning": "unlearn suspects",
    "input_detection": "score test inputs",
}

QUOTAS = {
    "queued": "queued experiments",
    "running": "running experiments",
    "device_seconds": "device time in 30 days",
    "bytes": "stored files",
    "requests": "requests per minute",
}


def percent(fraction: float | None, digits: int = 1) -> str:
    """0.975 as 97.5 %; None as a dash."""
    return "–" if fraction is None else f"{100 * fraction:.{digits}f} %"


def measured(aggregate: dict[str, Any] | None, metric: str = "", unit: str = "%") -> str:
    """A mean with half the width of its interval if it has one. ``unit`` is that of fractions, which are scaled."""
    if aggregate is None:
        return "–"
    scale, unit = (1, UNITS.get(metric, "")) if metric in NOT_FRACTIONS else (100, unit)
    interval = format_interval(aggregate["mean"], aggregate.get("low"), aggregate.get("high"), scale)
    return f"{interval} {unit}".rstrip()


def single(value: float | None, metric: str = "") -> str:
    """The value of one seed."""
    return measured(None if value is None else {"mean": value}, metric)


def span(seconds: float | None) -> str:
    """A duration, such as 42 s, 3 min 5 s or 2 h 10 min."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def ago(moment: datetime) -> str:
    """The time since ``moment`` in its largest unit."""
    seconds = max(0, (utcnow() - moment).total_seconds())
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def clock(moment: datetime) -> str:
    """Date and time in UTC."""
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def size(count: int) -> str:
    """A number of bytes in the largest unit in which it is at least 1."""
    amount, unit = float(count), "B"
    for larger in ("kB", "MB", "GB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"


def quota(name: str) -> str:
    return QUOTAS.get(name, name.replace("_", " "))


def amount(value: float | None, name: str, unlimited: str = "none") -> str:
    """The usage or limit of a quota; ``unlimited`` if there is no limit."""
    if value is None:
        return unlimited
    if name == "bytes":
        return size(int(value))
    return span(value) if name == "device_seconds" else f"{value:,g}"


def metric(name: str) -> str:
    return METRICS.get(name, name.replace("_", " "))


def stage(kind: str) -> str:
    return STAGES.get(kind, kind.replace("_", " "))


def pretty(value: Any) -> str:
    """JSON on several lines."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def value(field: Any) -> str:
    """The value of a field: a string as it is, anything else as JSON on one line."""
    return field if isinstance(field, str) else json.dumps(field, ensure_ascii=False)


FILTERS: dict[str, Callable[..., str]] = {
    "percent": percent,
    "measured": measured,
    "single": single,
    "network": label_of,
    "span": span,
    "ago": ago,
    "clock": clock,
    "size": size,
    "quota": quota,
    "amount": amount,
    "metric": metric,
    "stage": stage,
    "pretty": pretty,
    "value": value,
}
