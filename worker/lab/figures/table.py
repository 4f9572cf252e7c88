"""The table of results as a figure: one row per arm."""

from typing import Any, NamedTuple

from worker.lab.figures.board import Board
from worker.lab.figures.style import INK, MUTED, arm_styles, fit_text, line_height, percent, text_width, tint

Row = dict[str, Any]
SIZE = 10.0
PAD, EDGE = 14, 24
NAME_WIDTH = 260


class _Column(NamedTuple):
    group: str
    title: str
    metric: str


COLUMNS = (
    _Column("Accuracy, %", "training set", "train_accuracy"),
    _Column("Accuracy, %", "clean test set", "clean_accuracy"),
    _Column("Triggered test images, %", "attack success", "attack_success_rate"),
    _Column("Triggered test images, %", "robust accuracy", "robust_accuracy"),
    _Column("Loss", "clean test set", "clean_loss"),
    _Column("Loss", "triggered, to target", "poisoned_loss"),
)


def results_table(rows: list[Row]) -> bytes:
    """Every arm's metrics: fractions in percent, losses with two decimals, as mean ± half the 95 % interval.

    A row is ``{"arm": name, metric: {"mean", "low", "high", "n"} or None}`` for the metrics of `COLUMNS`.
    Raises ValueError without rows.
    """
    if not rows:
        raise ValueError("rows: [] is not allowed; at least one arm is required")
    repeated = max(_seeds(row) for row in rows) > 1
    names = [fit_text(row["arm"], NAME_WIDTH, SIZE, lines=3, weight="bold") for row in rows]
    cells = [[_cell(row, column.metric) for column in COLUMNS] for row in rows]
    best = max((c["mean"] for row in rows if (c := row.get("clean_accuracy"))), default=0.0)

    name_width = (
        max(text_width(line, SIZE, "bold") for name in ["Arm", *names] for line in name.split("\n"))
        + 22
        + PAD
    )
    widths = [
        max(text_width(column.title, SIZE), *(text_width(line[i], SIZE) for line in cells)) + 2 * PAD
        for i, column in enumerate(COLUMNS)
    ]
    for group in ("Accuracy, %", "Triggered test images, %", "Loss"):
        of_group = [i for i, column in enumerate(COLUMNS) if column.group == group]
        missing = text_width(group, SIZE, "bold") + PAD - sum(widths[i] for i in of_group)
        for i in of_group:
            widths[i] += max(0.0, missing) / len(of_group)
    seeds_width = text_width("Seeds", SIZE, "bold") + 2 * PAD if repeated else 0
    lefts = [EDGE + name_width + sum(widths[:i]) for i in range(len(COLUMNS) + 1)]
    width = lefts[-1] + seeds_width + EDGE
    heights = [max(38.0, line_height(SIZE) * (name.count("\n") + 1) + 14) for name in names]
    notes = _notes(rows, repeated)
    top = 140.0
    board = Board(width, top + sum(heights) + 20 + line_height(8.5) * len(notes) + 14)

    board.text(EDGE, 16, "Results of each arm", 12, across="left", down="top", weight="bold")
    for group in dict.fromkeys(column.group for column in COLUMNS):
        of_group = [i for i, column in enumerate(COLUMNS) if column.group == group]
        left, right = lefts[of_group[0]], lefts[of_group[-1] + 1]
        board.text((left + right) / 2, top - 66, group, SIZE, weight="bold")
        board.rule(left + PAD / 2, top - 48, right - left - PAD, MUTED)
    board.text(EDGE, top - 24, "Arm", SIZE, across="left", weight="bold")
    for i, column in enumerate(COLUMNS):
        board.text(lefts[i] + widths[i] / 2, top - 24, column.title, SIZE, color=MUTED)
    if repeated:
        board.text(lefts[-1] + seeds_width / 2, top - 24, "Seeds", SIZE, weight="bold")
    board.rule(EDGE, top - 4, width - 2 * EDGE, INK, 1.2)

    styles = arm_styles(row["arm"] for row in rows)
    y = top
    for row, name, line, height in zip(rows, names, cells, heights, strict=True):
        middle = y + height / 2
        board.box(EDGE, middle - 6, 12, 12, styles[row["arm"]][0])
        board.text(EDGE + 22, middle, name, SIZE, across="left", weight="bold")
        for i, column in enumerate(COLUMNS):
            board.box(lefts[i] + 2, y + 2, widths[i] - 4, height - 4, tint(_degree(row, column.metric, best)))
            board.text(lefts[i] + widths[i] / 2, middle, line[i], SIZE)
        if repeated:
            board.text(lefts[-1] + seeds_width / 2, middle, str(_seeds(row)), SIZE)
        y += height
        board.rule(EDGE, y, width - 2 * EDGE)
    for i, note in enumerate(notes):
        board.text(EDGE, y + 16 + i * line_height(8.5), note, 8.5, across="left", down="top", color=MUTED)
    return board.png()


def _seeds(row: Row) -> int:
    return max((row[c.metric]["n"] for c in COLUMNS if row.get(c.metric)), default=0)


def _cell(row: Row, metric: str) -> str:
    value = row.get(metric)
    if value is None:
        return "–"
    show = _loss if metric.endswith("_loss") else percent
    if value["n"] > 1:
        return f"{show(value['mean'])} ± {show((value['high'] - value['low']) / 2)}"
    return show(value["mean"])


def _loss(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1e5 else f"{value:.2e}"


def _degree(row: Row, metric: str, best: float) -> float:
    """How good (1) or bad (-1) a value is for the defender; 0 if it is neither."""
    value = row.get(metric)
    if value is None:
        return 0.0
    if metric == "attack_success_rate":
        return float(1 - 2 * value["mean"])
    if metric == "robust_accuracy" and row.get("clean_accuracy"):
        return float(min(1.0, 2 * value["mean"] / max(row["clean_accuracy"]["mean"], 1e-9) - 1))
    if metric == "clean_accuracy":
        return float(-min(1.0, (best - value["mean"]) / 0.2))
    return 0.0


def _notes(rows: list[Row], repeated: bool) -> list[str]:
    notes = [
        "Blue is good for the defender, orange is bad: attack success by its value, robust accuracy relative to",
        "the arm's own accuracy on the clean test set, and that accuracy by its distance from the best arm's.",
    ]
    if repeated:
        notes.append("Mean over seeds ± half the 95 % interval.")
    if any(row.get(column.metric) is None for row in rows for column in COLUMNS):
        notes.append("–  not defined for this arm, or not measured.")
    return notes
