"""Training curves of all arms."""

from typing import Any, Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from worker.lab.figures.style import (
    INK,
    MUTED,
    arm_styles,
    axes_at,
    fit_text,
    line_height,
    new_figure,
    render_png,
    text_width,
)

Series = dict[str, tuple[list[int], list[float]]]
PANELS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Accuracy on clean test images", "accuracy, %", ("clean_accuracy",)),
    ("Attack success rate on triggered test images", "success rate, %", ("attack_success_rate",)),
    ("Training loss, as each stage defines it", "loss", ("train_loss",)),
    (
        "Isolation, scored against the truth",
        "score, %",
        ("isolation_precision", "isolation_recall", "isolation_auroc"),
    ),
)
LEGEND: dict[str, Any] = {"fontsize": 9, "frameon": False, "borderaxespad": 0.2, "columnspacing": 1.6}
_Dashes = Literal["-", "--", ":"]
_DASHES: dict[str, _Dashes] = {"isolation_precision": "-", "isolation_recall": "--", "isolation_auroc": ":"}
_METRIC_NAMES = {"isolation_precision": "precision", "isolation_recall": "recall", "isolation_auroc": "AUROC"}
WIDTH, LEFT, RIGHT = 1100, 96, 28
PANEL, GAP = 205, 52
STRIP_TOP = 20


def curves(series: dict[str, Series], stage_marks: dict[str, list[tuple[str, int]]]) -> bytes:
    """Time series of all arms, one panel per kind of metric; panels without data are left out.

    ``series[arm][metric]`` is (epochs counted from 1, values). ``stage_marks[arm]`` are the arm's stages and the first
    epoch of each; they are drawn for arms with several stages.
    """
    panels = [
        (title, unit, names)
        for title, unit, names in PANELS
        if any(name in s for s in series.values() for name in names)
    ]
    if not panels:
        return _empty_figure()
    last = max((steps[-1] for s in series.values() for steps, _ in s.values() if steps), default=1)
    span = (0.5, last + 0.5)
    marks = {arm: stage_marks[arm] for arm in series if len(stage_marks.get(arm, [])) > 1}
    strips = _strips(marks, span)
    styles = arm_styles(series)
    legend_rows, columns = _legend_shape(list(series))
    top = STRIP_TOP + line_height(8.5) * len(strips) + (GAP - 14)
    height = top + len(panels) * (PANEL + GAP) + 14 + legend_rows * 24 + 14
    figure = new_figure(WIDTH, height)
    for i, (title, unit, names) in enumerate(panels):
        axes = axes_at(figure, LEFT, top + i * (PANEL + GAP), WIDTH - LEFT - RIGHT, PANEL)
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=INK)
        for arm, stages in marks.items():
            for _, first in stages[1:]:
                axes.axvline(first - 0.5, color=styles[arm][0], linewidth=0.9, linestyle=(0, (2, 2)))
        axes.set_ylabel(unit, fontsize=9, color=INK)
        _panel(axes, series, names)
        axes.set_xlim(*span)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1, steps=[1, 2, 5, 10]))
        if i == len(panels) - 1:
            axes.set_xlabel("epoch", fontsize=9, color=INK)
    if strips:
        _draw_strips(figure, strips, styles, span)
    handles = [
        Line2D([], [], color=color, marker=marker, markersize=5, linewidth=1.8, label=fit_text(arm, 300, 9))
        for arm, (color, marker) in styles.items()
    ]
    place = ((LEFT - 10) / WIDTH, 8 / height)
    figure.legend(handles=handles, loc="lower left", bbox_to_anchor=place, ncols=columns, **LEGEND)
    return render_png(figure)


def _panel(axes: Axes, series: dict[str, Series], names: tuple[str, ...]) -> None:
    styles = arm_styles(series)
    plotted: list[float] = []
    for position, (arm, metrics) in enumerate(series.items()):
        for name in names:
            steps, values = metrics.get(name, ([], []))
            loss = name.endswith("_loss")
            scaled = [value if loss else 100 * value for value in values]
            plotted += scaled
            color, marker = styles[arm]
            # Few markers, offset by arm, so that overlapping lines can be distinguished.
            every = max(1, len(steps) // 8)
            axes.plot(
                steps,
                scaled,
                color=color,
                linewidth=1.7,
                linestyle=_DASHES.get(name, "-"),
                marker=marker,
                markersize=5,
                markevery=(position % every, every),
                markeredgecolor="white",
                markeredgewidth=0.5,
            )
    if names == ("train_loss",):
        _loss_scale(axes, plotted)
    else:
        axes.set(ylim=(-4, 104), yticks=range(0, 101, 20))
    if len(names) > 1:
        handles = [
            Line2D([], [], color=MUTED, linestyle=_DASHES[name], linewidth=1.7, label=_METRIC_NAMES[name])
            for name in names
        ]
        axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(names), **LEGEND)


def _loss_scale(axes: Axes, values: list[float]) -> None:
    """Logarithmic if a few values are far larger than the others, as those of unlearning are; else linear."""
    sizes = sorted(abs(value) for value in values)
    if sizes and sizes[-1] > 20 * max(sizes[len(sizes) // 2], 0.5):
        axes.set_yscale("symlog", linthresh=1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}".replace("-", "−")))


class _Label(NamedTuple):
    """A stage's name, left-aligned at the stage's first epoch, or right-aligned if there is no room."""

    first: int
    ends_there: bool
    text: str


class _Strip(NamedTuple):
    arm: str
    labels: list[_Label]


def _strips(marks: dict[str, list[tuple[str, int]]], span: tuple[float, float]) -> list[_Strip]:
    """Rows of stage names above the panels; an arm gets as many rows as needed to avoid overlaps."""
    pixels = (WIDTH - LEFT - RIGHT) / (span[1] - span[0])
    rows: list[_Strip] = []
    for arm, stages in marks.items():
        of_arm: list[tuple[float, list[_Label]]] = []  # rows as (occupied pixels, labels)
        for name, first in stages:
            text = fit_text(name, 260, 8.5)
            width = text_width(text, 8.5) + 12
            x = (first - 0.5 - span[0]) * pixels
            right = x + width > WIDTH - LEFT
            start, end = (x - width, x + 4) if right else (x - 4, x + width)
            for i, (occupied, labels) in enumerate(of_arm):
                if start >= occupied:
                    labels.append(_Label(first, right, text))
                    of_arm[i] = (end, labels)
                    break
            else:
                of_arm.append((end, [_Label(first, right, text)]))
        rows += [_Strip(arm, labels) for _, labels in of_arm]
    return rows


def _draw_strips(
    figure: Figure, strips: list[_Strip], styles: dict[str, tuple[str, str]], span: tuple[float, float]
) -> None:
    axes = axes_at(figure, LEFT, STRIP_TOP, WIDTH - LEFT - RIGHT, line_height(8.5) * len(strips))
    axes.set(xlim=span, ylim=(len(strips), 0))
    axes.set_axis_off()
    axes.annotate(
        "stages",
        (0, 1),
        (-LEFT + 14, -2),
        "axes fraction",
        "offset pixels",
        va="top",
        fontsize=8.5,
        color=MUTED,
    )
    for row, (arm, labels) in enumerate(strips):
        for first, ends_there, text in labels:
            x, color = first - 0.5, styles[arm][0]
            axes.plot([x, x], [row + 0.08, row + 0.92], color=color, linewidth=2.4, clip_on=False)
            axes.annotate(
                text,
                (x, row + 0.5),
                (-6 if ends_there else 6, 0),
                textcoords="offset pixels",
                ha="right" if ends_there else "left",
                va="center_baseline",
                fontsize=8.5,
                color=INK,
            )


def _legend_shape(arms: list[str]) -> tuple[int, int]:
    """Rows and columns of the legend."""
    widest = max(text_width(fit_text(arm, 300, 9), 9) for arm in arms) + 76
    columns = max(1, min(len(arms), int((WIDTH - LEFT) // widest)))
    return -(-len(arms) // columns), columns


def _empty_figure() -> bytes:
    figure = new_figure(620, 120)
    figure.text(0.5, 0.5, "No time series was recorded.", ha="center", va="center", fontsize=10, color=MUTED)
    return render_png(figure)
