"""Tables for people: percentages, one row per arm."""

from collections.abc import Iterable, Sequence

from rich.table import Table

from app.specs.printable import printable
from bdlab.types import Aggregate, ExperimentItem, Results

METRICS = {
    "clean_accuracy": "clean accuracy",
    "attack_success_rate": "attack success",
    "robust_accuracy": "robust accuracy",
    "defense_effectiveness": "effectiveness",
    "isolation_precision": "isolation precision",
    "input_auroc": "input AUROC",
    "input_false_positive_rate": "clean inputs flagged",
}
"""Columns of the results table: heading by metric."""


def text_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table of left-aligned texts."""
    table = Table(title=printable(title) or None, title_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading == "id")  # so that it can be copied
    for row in rows:
        table.add_row(*(printable(str(cell)) for cell in row))
    return table


def results_table(results: Results, title: str) -> Table:
    """Mean of every arm over its seeds; with several seeds also half the width of the 95 % interval."""
    metrics = [name for name in METRICS if any(arm["aggregate"].get(name) for arm in results["arms"])]
    table = Table(title=printable(title) or None, title_justify="left")
    table.add_column("arm")
    for name in metrics:
        table.add_column(METRICS[name], justify="right")
    table.add_column("seconds", justify="right")
    for arm in results["arms"]:
        cells = [percent(arm["aggregate"].get(name)) for name in metrics]
        seconds = arm["aggregate"].get("seconds")
        table.add_row(printable(arm["arm"]), *cells, f"{seconds['mean']:.1f}" if seconds else "-")
    return table


def percent(value: Aggregate | None) -> str:
    """``97.2 %``, or ``97.2 ± 0.4 %`` if there is an interval."""
    if value is None or value.get("mean") is None:
        return "-"
    if value["low"] is None or value["high"] is None:
        return f"{100 * value['mean']:.1f} %"
    return f"{100 * value['mean']:.1f} ± {50 * (value['high'] - value['low']):.1f} %"


def experiments_table(experiments: Iterable[ExperimentItem]) -> Table:
    """One row per experiment."""
    headings = ("id", "status", "name", "dataset", "model", "attack", "defenses")
    rows = (
        (e["id"], e["status"], e["name"], e["dataset"], e["model"], e["attack"], ", ".join(e["defenses"]))
        for e in experiments
    )
    return text_table("", headings, rows)
