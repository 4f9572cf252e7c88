"""The models that a repair chose from: a pruning or a mode-connectivity curve."""

from matplotlib.ticker import MaxNLocator

from worker.lab.figures.style import BAD, GOOD, INK, axes_at, fit_text, new_figure, render_png

WIDTH, HEIGHT = 860, 400
LEFT, TOP, RIGHT, BOTTOM = 84, 84, 28, 58
AXIS_LABELS = {
    "pruned": "pruned channels",
    "threshold": "threshold of the masks",
    "t": "position t on the curve: 0 the victim, 1 the fine-tuned copy",
}
LINES = {
    "clean_accuracy": ("accuracy, test images", GOOD, "o", "-"),
    "attack_success_rate": ("attack success rate, test images", BAD, "X", "-"),
    "held_out_accuracy": ("accuracy, held-out images", "#009E73", "^", "--"),
    "training_accuracy": ("accuracy, training images", "#009E73", "^", "--"),
}


def sweep(columns: dict[str, list[float]], arm: str) -> bytes:
    """Accuracy and attack success of each row of the table against its first column.

    Columns that are not in `LINES` are not drawn. The dashed line is what the defense sees.
    """
    axis = next(iter(columns))
    figure = new_figure(WIDTH, HEIGHT)
    axes = axes_at(figure, LEFT, TOP, WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM)
    for name, (label, color, marker, dashes) in LINES.items():
        if name in columns:
            percent = [100 * value for value in columns[name]]
            axes.plot(
                columns[axis],
                percent,
                color=color,
                linestyle=dashes,
                linewidth=1.7,
                marker=marker,
                markersize=5,
                markeredgecolor="white",
                markeredgewidth=0.5,
                label=label,
            )
    axes.set(ylim=(-4, 104), yticks=range(0, 101, 20))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=axis == "pruned"))
    axes.set_xlabel(AXIS_LABELS.get(axis, axis), fontsize=9, color=INK)
    axes.set_ylabel("percent", fontsize=9, color=INK)
    title = fit_text(f"{arm}: the models that it chose from", WIDTH - LEFT - RIGHT, 10, weight="bold")
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=INK, pad=34)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=3,
        fontsize=8,
        frameon=False,
        borderaxespad=0.2,
        columnspacing=1.4,
    )
    return render_png(figure)
