"""Numbers, times and names as people read them: the templates' filters."""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from app.core.database import utcnow

METRICS = {
    "clean_accuracy": "Clean accuracy",
    "attack_success_rate": "Attack success",
    "robust_accuracy": "Robust accuracy",
    "cross_trigger_accuracy": "Accuracy under foreign triggers",
    "target_image_hit": "Target image hit",
    "train_accuracy": "Training accuracy",
    "isolation_precision": "Isolation precision",
    "isolation_recall": "Isolation recall",
    "isolation_auroc": "Isolation AUROC",
    "seconds": "Seconds",
}
STAGES = {
    "poisoned_set": "poison the training set",
    "victim": "train",
    "isolation": "isolate suspects",
    "finetune": "train on the rest",
    "second_training": "train once more",
    "retraining": "train anew",
    "unlearning": "unlearn suspects",
}

QUOTAS = {
    "queued": "waiting experiments",
    "running": "running experiments",
    "device_seconds": "device time in 30 days",
    "bytes": "stored files",
    "requests": "requests in a minute",
}


def percent(fraction: float | None, digits: int = 1) -> str:
    """0.975 as 97.5 %; None as a dash."""
    return "–" if fraction is None else f"{100 * fraction:.{digits}f} %"


def measured(value: dict[str, Any] | None, name: str = "", share: str = "%") -> str:
    """A mean with half the width of its interval, where it has one; ``share`` is the unit of a fraction."""
    if value is None:
        return "–"
    scale, unit = (1, "s") if name == "seconds" else (100, share)
    half = f" ± {scale * (value['high'] - value['mean']):.1f}" if value.get("high") is not None else ""
    return f"{scale * value['mean']:.1f}{half} {unit}"


def single(value: float | None, name: str = "") -> str:
    """One number of one seed."""
    return measured(None if value is None else {"mean": value}, name)


def span(seconds: float | None) -> str:
    """A duration: 42 s, 3 min 5 s, 2 h 10 min."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def ago(moment: datetime) -> str:
    """How long ago, in the one unit that matters."""
    seconds = max(0, (utcnow() - moment).total_seconds())
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def clock(moment: datetime) -> str:
    """The moment itself, in UTC."""
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def size(count: int) -> str:
    """Bytes in the largest unit that leaves a number of at least one."""
    amount, unit = float(count), "B"
    for larger in ("kB", "MB", "GB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"


def quota(name: str) -> str:
    return QUOTAS.get(name, name.replace("_", " "))


def amount(value: float | None, name: str, otherwise: str = "none") -> str:
    """How much of a quota; ``otherwise`` where there is no limit."""
    if value is None:
        return otherwise
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


def value(given: Any) -> str:
    """A field's value: text as it is, anything else as JSON on one line."""
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)


FILTERS: dict[str, Callable[..., str]] = {
    "percent": percent,
    "measured": measured,
    "single": single,
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
