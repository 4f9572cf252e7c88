"""Facts about a benchmark run for the head of its results page."""

import datetime
import platform
from collections.abc import Sequence

import torch


def making(seeds: Sequence[int]) -> dict[str, str]:
    """Date, processor, versions and seeds, as fields of a page's head."""
    return {
        "date": datetime.date.today().isoformat(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seeds": ", ".join(map(str, seeds)),
    }
