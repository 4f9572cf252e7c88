"""Figures of how well an isolation separates poisoned from clean samples."""

from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

from worker.lab.figures.style import (
    BAD,
    GOOD,
    INK,
    MUTED,
    add_legend_above,
    axes_at,
    fit_text,
    line_height,
    new_figure,
    render_png,
)

Array = NDArray[Any]
BINS = 60
_SMALLEST = 1e-7  # start of a logarithmic axis: the smallest loss that float32 distinguishes from zero


def _number(value: float, _: object = None) -> str:
    """An axis label without an exponent: ``10,000``, ``0.00001``."""
    return f"{value:,.0f}" if value >= 1000 else np.format_float_positional(float(f"{value:.6g}"), trim="-")


_plain = FuncFormatter(_number)


def loss_histogram(losses: Array, is_poisoned: Array | None, isolated: Array, title: str) -> bytes:
    """Per-sample loss, clean against poisoned; counts are logarithmic, so that 1 % of poison is visible.

    ``losses`` float ``[N]``; ``is_poisoned``, None if not known, and ``isolated`` bool ``[N]``. The line marks the
    loss below which there are as many samples as were isolated. Raises ValueError if there are no losses, if one is
    not finite, or if the lengths differ.
    """
    _same_length(
        losses=losses, isolated=isolated, **({} if is_poisoned is None else {"is_poisoned": is_poisoned})
    )
    if not len(losses) or not np.isfinite(losses).all():
        bad = int((~np.isfinite(losses)).sum())
        raise ValueError(
            f"losses: {len(losses)} values, {bad} not finite, is not allowed; at least one, all finite"
        )
    losses = np.maximum(losses.astype(np.float64), 0)
    count = int(isolated.sum())
    cut = float(np.sort(losses)[count - 1]) if count else None
    # On a linear axis a cut this low would be inside the first bar.
    logarithmic = cut is not None and cut < 0.05 * float(np.quantile(losses, 0.98))
    if logarithmic:
        losses = np.maximum(losses, _SMALLEST)
        edges = np.geomspace(losses.min(), losses.max(), BINS + 1)
    else:
        edges = np.linspace(losses.min(), max(losses.max(), losses.min() + 1e-3), BINS + 1)

    title = fit_text(title, 940, 12, lines=2, weight="bold")
    head = 20 + line_height(12) * (title.count("\n") + 1)
    if is_poisoned is None:
        groups = [("training images", MUTED, "", np.ones_like(isolated))]
    else:
        groups = [("clean", GOOD, "", ~is_poisoned), ("poisoned", BAD, "", is_poisoned)]
    groups.append(("isolated", INK, "////", isolated))
    height = head + 34 + 350 + 58
    figure = new_figure(1000, height)
    figure.text(0.03, 1 - 16 / height, title, fontsize=12, fontweight="bold", color=INK, va="top")
    axes = axes_at(figure, 104, head + 34, 1000 - 104 - 30, 350)
    handles: list[Patch | Line2D] = []
    for name, color, hatch, members in groups:
        size = int(members.sum())
        if not size:
            continue
        heights, _ = np.histogram(losses[members], edges)
        fill: Any = "none" if hatch else (color, 0.35)
        axes.stairs(
            heights,
            edges,
            baseline=0.5,
            fill=True,
            facecolor=fill,
            edgecolor=color,
            hatch=hatch,
            linewidth=0.9 if hatch else 1.4,
        )
        handles.append(Patch(facecolor=fill, edgecolor=color, hatch=hatch, label=f"{name} ({size:,})"))
    if cut is not None:
        axes.axvline(max(cut, edges[0]), color=INK, linewidth=1.4, linestyle=(0, (5, 3)))
        share = f"{100 * count / len(losses):.3g}"
        handles.append(
            Line2D([], [], color=INK, linestyle=(0, (5, 3)), label=f"lowest {share} %: loss ≤ {cut:.3g}")
        )
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5, top=max(12.0, axes.get_ylim()[1]))
    axes.yaxis.set_major_formatter(_plain)
    axes.yaxis.set_minor_formatter(NullFormatter())
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(_plain)
    axes.set_xlabel("cross-entropy of the sample (nats)", fontsize=9, color=INK)
    axes.set_ylabel("training samples (log scale)", fontsize=9, color=INK)
    add_legend_above(axes, handles, 4)
    return render_png(figure)


def ranking(suspicion_rank: Array, is_poisoned: Array, isolated_count: int) -> bytes:
    """Quality of a ranking at every cut: precision against recall, and recall against the share of samples isolated.

    ``suspicion_rank`` float ``[N]`` in [0, 1], higher is more suspicious; ``is_poisoned`` bool ``[N]``.
    The cut at the ``isolated_count`` most suspicious samples is marked.
    Raises ValueError if nothing is poisoned, the cut is not one of 1 to N, or the lengths differ.
    """
    _same_length(suspicion_rank=suspicion_rank, is_poisoned=is_poisoned)
    n, poisoned = len(is_poisoned), int(is_poisoned.sum())
    if not poisoned:
        raise ValueError(f"is_poisoned: 0 of {n} samples is not allowed; at least one is required")
    if not 1 <= isolated_count <= n:
        raise ValueError(f"isolated_count: {isolated_count} is not allowed; 1 to {n}")
    true_positives = np.cumsum(is_poisoned[np.argsort(-suspicion_rank, kind="stable")])
    sizes = np.arange(1, n + 1)
    precision, recall = 100 * true_positives / sizes, 100 * true_positives / poisoned
    at = isolated_count - 1
    cut_label = f"cut: {isolated_count:,} of {n:,} samples\nprecision {precision[at]:.1f} %\nrecall {recall[at]:.1f} %"

    figure = new_figure(1100, 470)
    left = axes_at(figure, 78, 50, 430, 350)
    left.set_title(
        "Precision against recall, at every cut", loc="left", fontsize=10, fontweight="bold", color=INK
    )
    left.plot(recall, precision, color=GOOD, linewidth=1.8)
    left.axhline(100 * poisoned / n, color=MUTED, linewidth=1.1, linestyle=":")
    left.set(xlim=(-2, 102), ylim=(-2, 104))
    left.set_xlabel("recall: share of the poison that is isolated, %", fontsize=9, color=INK)
    left.set_ylabel("precision: poison among the isolated, %", fontsize=9, color=INK)
    right = axes_at(figure, 630, 50, 440, 350)
    right.set_title(
        "Recall, most suspicious samples first",
        loc="left",
        fontsize=10,
        fontweight="bold",
        color=INK,
    )
    right.plot(100 * sizes / n, recall, color=GOOD, linewidth=1.8, label="this ranking")
    right.plot(
        100 * sizes / n,
        100 * np.minimum(sizes / poisoned, 1),
        color=MUTED,
        linewidth=1.1,
        linestyle="--",
        label="perfect",
    )
    right.plot(100 * sizes / n, 100 * sizes / n, color=MUTED, linewidth=1.1, linestyle=":", label="by chance")
    right.axvline(100 * isolated_count / n, color=BAD, linewidth=1, linestyle=(0, (5, 3)))
    right.set_xscale("log")
    right.set(xlim=(100 / n / 1.2, 100), ylim=(-2, 104))
    right.xaxis.set_major_formatter(_plain)
    right.xaxis.set_minor_formatter(NullFormatter())
    right.set_xlabel(f"samples isolated, % of {n:,} (log scale)", fontsize=9, color=INK)
    right.set_ylabel(f"recall, % of {poisoned:,} poisoned", fontsize=9, color=INK)
    for axes, x, y in ((left, recall[at], precision[at]), (right, 100 * isolated_count / n, recall[at])):
        axes.plot(
            [x],
            [y],
            marker="o",
            markersize=8,
            color=BAD,
            markeredgecolor="white",
            zorder=5,
            label=cut_label,
            linestyle="none",
        )
    left.legend(
        handles=[
            Line2D([], [], color=BAD, marker="o", markersize=8, linestyle="none", label=cut_label),
            Line2D([], [], color=MUTED, linestyle=":", label=f"by chance: {100 * poisoned / n:.1f} %"),
        ],
        loc="best", fontsize=8.5, framealpha=0.9,
    )  # fmt: skip
    right.legend(handles=right.get_lines()[:3], loc="best", fontsize=8.5, framealpha=0.9)
    return render_png(figure)


def _same_length(**arrays: Array) -> None:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"{', '.join(lengths)}: lengths {list(lengths.values())} is not allowed; all the same"
        )
