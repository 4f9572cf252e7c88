"""A comparison as the columns and rows of a table."""

from app.core.table_formats import Cell, Column, Row, columns
from app.results.compare.schemas import Comparison
from app.results.numbers.schemas import Aggregate
from app.results.rendering import NOTHING, interval_cells
from app.specs.base import canonical_json
from app.specs.metrics import NOT_FRACTIONS

ENDS = ("", ".low", ".high", ".n")
DIFFERENCE = ".difference"


def numbers(comparison: Comparison, *, readable: bool) -> tuple[list[Column], list[Row]]:
    """One row for each arm and metric.

    Each experiment has the columns ID, ID.low, ID.high, ID.n and, except the first, the same for ID.difference. If
    ``readable``, a value with its interval is one cell, fractions are in percent, and headings are names.
    """
    heads = columns("arm", "metric")
    for number, column in enumerate(_experiment_columns(comparison)):
        names = (column.key,) if number == 0 else (column.key, column.key + DIFFERENCE)
        if not readable:
            heads += columns(*(f"{name}{end}" for name in names for end in ENDS))
            continue
        heads.append(column)
        heads += [Column(name, "difference to the first (95 % interval)") for name in names[1:]]
    rows: list[Row] = []
    for arm in comparison.arms:
        for metric in arm.metrics:
            row: dict[str, Cell] = {"arm": arm.arm, "metric": metric.metric}
            for experiment, value, difference in zip(
                comparison.experiments, metric.values, metric.differences, strict=True
            ):
                name, name_of_difference = experiment.id, experiment.id + DIFFERENCE
                if readable:
                    row[name] = _text(metric.metric, value)
                    row[name_of_difference] = _text(metric.metric, difference, sign="+")
                else:
                    row |= interval_cells(name, value) | interval_cells(name_of_difference, difference)
            rows.append(row)
    return heads, rows


def spec(comparison: Comparison) -> tuple[list[Column], list[Row]]:
    """One row for each field; ``same`` tells whether all experiments agree."""
    rows: list[Row] = []
    for field in comparison.spec:
        row: dict[str, Cell] = {"field": field.field, "same": field.same}
        for experiment, value in zip(comparison.experiments, field.values, strict=True):
            plain = value is None or isinstance(value, str | int | float | bool)
            row[experiment.id] = value if plain else canonical_json(value)
        rows.append(row)
    return [*columns("field", "same"), *_experiment_columns(comparison)], rows


def _experiment_columns(comparison: Comparison) -> list[Column]:
    return [
        Column(experiment.id, experiment.name or f"experiment {number}")
        for number, experiment in enumerate(comparison.experiments, 1)
    ]


def _text(metric: str, value: Aggregate | None, *, sign: str = "") -> str:
    """``97.2 % [96.8, 97.6]``; the mean alone if there is no interval."""
    if value is None:
        return NOTHING
    scale, digits, unit = (1, ".4g", "") if metric in NOT_FRACTIONS else (100, ".1f", " %")
    mean = f"{scale * value.mean:{sign}{digits}}{unit}"
    if value.low is None or value.high is None:
        return mean
    return f"{mean} [{scale * value.low:{digits}}, {scale * value.high:{digits}}]"
