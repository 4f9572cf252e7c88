"""A figure of how well an input detection separates triggered from clean test images."""

from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from worker.lab.figures.style import (
    BAD,
    GOOD,
    INK,
    add_legend_above,
    axes_at,
    fit_text,
    line_height,
    new_figure,
    render_png,
)

Array = NDArray[Any]
BINS = 50


def suspicion_histogram(suspicion: Array, is_triggered: Array, threshold: float, title: str) -> bytes:
    """Suspicion of inputs, clean against triggered, each in percent of its own number; the line is the threshold.

    ``suspicion`` float ``[N]``, ``is_triggered`` bool ``[N]``. Raises ValueError if there is no input, if a value is
    not finite, or if the lengths differ.
    """
    if len(suspicion) != len(is_triggered) or not len(suspicion):
        lengths = f"{len(suspicion)} and {len(is_triggered)}"
        raise ValueError(
            f"suspicion, is_triggered: lengths {lengths} are not allowed; the same, at least one"
        )
    if not np.isfinite([*suspicion, threshold]).all():
        raise ValueError("suspicion, threshold: a value is not finite")
    low, high = min(suspicion.min(), threshold), max(suspicion.max(), threshold)
    edges = np.linspace(low, max(high, low + 1e-3), BINS + 1)

    title = fit_text(title, 940, 12, lines=2, weight="bold")
    head = 20 + line_height(12) * (title.count("\n") + 1)
    height = head + 34 + 300 + 58
    figure = new_figure(1000, height)
    figure.text(0.03, 1 - 16 / height, title, fontsize=12, fontweight="bold", color=INK, va="top")
    axes = axes_at(figure, 84, head + 34, 1000 - 84 - 30, 300)
    handles: list[Patch | Line2D] = []
    for name, color, members in (("clean", GOOD, ~is_triggered), ("triggered", BAD, is_triggered)):
        if not (count := int(members.sum())):
            continue
        heights, _ = np.histogram(suspicion[members], edges)
        axes.stairs(
            100 * heights / count, edges, fill=True, facecolor=(color, 0.35), edgecolor=color, linewidth=1.4
        )
        flagged = 100 * float((suspicion[members] >= threshold).mean())
        label = f"{name} ({count:,}): {flagged:.1f} % flagged"
        handles.append(Patch(facecolor=(color, 0.35), edgecolor=color, label=label))
    dashes = (0, (5, 3))
    axes.axvline(threshold, color=INK, linewidth=1.4, linestyle=dashes)
    handles.append(Line2D([], [], color=INK, linestyle=dashes, label=f"threshold {threshold:.3g}"))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("suspicion", fontsize=9, color=INK)
    axes.set_ylabel("images, %", fontsize=9, color=INK)
    add_legend_above(axes, handles, 3)
    return render_png(figure)
