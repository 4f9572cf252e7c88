"""Tables for people: percentages, one row an arm."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table

from bdlab.types import Aggregate, Experiment, Results

_COLUMNS = {
    "clean_accuracy": "clean accuracy",
    "attack_success_rate": "attack success",
    "robust_accuracy": "robust accuracy",
    "isolation_precision": "isolation precision",
}


def plain(title: str, headings: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table of texts."""
    table = Table(title=title or None, title_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading == "id")  # so that it can be copied
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    return table


def results(results: Results, title: str) -> Table:
    """Mean of every arm over its seeds, with the 95 % interval's half width where there are several."""
    shown = [name for name in _COLUMNS if any(arm["aggregate"].get(name) for arm in results["arms"])]
    table = Table(title=title or None, title_justify="left")
    table.add_column("arm")
    for name in shown:
        table.add_column(_COLUMNS[name], justify="right")
    table.add_column("seconds", justify="right")
    for arm in results["arms"]:
        cells = [percent(arm["aggregate"].get(name)) for name in shown]
        seconds = arm["aggregate"].get("seconds")
        table.add_row(arm["arm"], *cells, f"{seconds['mean']:.1f}" if seconds else "-")
    return table


def percent(value: Aggregate | None) -> str:
    """``97.2 %``, or ``97.2 ± 0.4 %`` if there is an interval."""
    if value is None or value.get("mean") is None:
        return "-"
    if value["low"] is None or value["high"] is None:
        return f"{100 * value['mean']:.1f} %"
    return f"{100 * value['mean']:.1f} ± {50 * (value['high'] - value['low']):.1f} %"


def experiments(found: Iterable[Experiment]) -> Table:
    """One row an experiment."""
    rows = (
        (
            e["id"],
            e["status"],
            e["name"],
            _part(e, "dataset"),
            _part(e, "model"),
            _part(e, "attack"),
            _defenses(e),
        )
        for e in found
    )
    return plain("", ("id", "status", "name", "data set", "model", "attack", "defenses"), rows)


def _part(experiment: Experiment, part: str) -> str:
    described: dict[str, Any] = experiment["spec"].get(part, {})
    return str(described.get("key") or described.get("name", ""))


def _defenses(experiment: Experiment) -> str:
    return ", ".join(d.get("arm") or d["name"] for d in experiment["spec"].get("defenses", []))
