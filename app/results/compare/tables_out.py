"""A comparison as rows of a table."""

from app.core.table_formats import Column, Row, columns
from app.results.compare.schemas import Comparison
from app.results.numbers.schemas import Aggregate
from app.specs.base import canonical_json
from app.specs.metrics import NOT_FRACTIONS

ENDS = ("", ".low", ".high", ".n")


def numbers(comparison: Comparison) -> tuple[list[Column], list[Row]]:
    """One row an arm and metric: under each experiment's id mean, interval, count, and difference to the first."""
    ids = [experiment.id for experiment in comparison.experiments]
    heads = columns(
        "arm", "metric", *(f"{i}{part}{end}" for i in ids for part in _parts(i, ids) for end in ENDS)
    )
    rows: list[Row] = []
    for arm in comparison.arms:
        for metric in arm.metrics:
            row: dict[str, str | int | float | bool | None] = {"arm": arm.arm, "metric": metric.metric}
            for i, value, difference in zip(ids, metric.values, metric.differences, strict=True):
                for part, aggregate in (("", value), (".difference", difference)):
                    if aggregate is not None:
                        cells = (aggregate.mean, aggregate.low, aggregate.high, aggregate.n)
                        row |= {f"{i}{part}{end}": cell for end, cell in zip(ENDS, cells, strict=True)}
            rows.append(row)
    return heads, rows


def numbers_for_people(comparison: Comparison) -> tuple[list[Column], list[Row]]:
    """The same with a cell an experiment, fractions in percent, and the difference to the first behind it."""
    heads = columns("arm", "metric")
    for number, experiment in enumerate(comparison.experiments):
        heads.append(Column(experiment.id, experiment.name or f"experiment {number + 1}"))
        if number:
            heads.append(Column(f"{experiment.id}.difference", "difference to the first (95 % interval)"))
    rows: list[Row] = []
    for arm in comparison.arms:
        for metric in arm.metrics:
            row: dict[str, str | int | float | bool | None] = {"arm": arm.arm, "metric": metric.metric}
            for experiment, value, difference in zip(
                comparison.experiments, metric.values, metric.differences, strict=True
            ):
                row[experiment.id] = shown(metric.metric, value)
                row[f"{experiment.id}.difference"] = shown(metric.metric, difference, signed=True)
            rows.append(row)
    return heads, rows


def spec(comparison: Comparison) -> tuple[list[Column], list[Row]]:
    """One row a field; ``same`` marks those in which all agree."""
    heads = columns("field", "same")
    heads += [
        Column(experiment.id, experiment.name or f"experiment {number + 1}")
        for number, experiment in enumerate(comparison.experiments)
    ]
    rows: list[Row] = []
    for field in comparison.spec:
        row: dict[str, str | int | float | bool | None] = {"field": field.field, "same": field.same}
        for experiment, value in zip(comparison.experiments, field.values, strict=True):
            plain = value is None or isinstance(value, str | int | float | bool)
            row[experiment.id] = value if plain else canonical_json(value)
        rows.append(row)
    return heads, rows


def shown(metric: str, value: Aggregate | None, *, signed: bool = False) -> str:
    """``97.2 % [96.8, 97.6]``; without an interval the mean alone, a dash for nothing."""
    if value is None:
        return "-"
    scale, unit = (1, "") if metric in NOT_FRACTIONS else (100, " %")
    digits = ".4g" if metric in NOT_FRACTIONS else ".1f"
    mean = f"{scale * value.mean:{'+' if signed else ''}{digits}}{unit}"
    if value.low is None or value.high is None:
        return mean
    return f"{mean} [{scale * value.low:{digits}}, {scale * value.high:{digits}}]"


def _parts(experiment_id: str, ids: list[str]) -> tuple[str, ...]:
    return ("",) if experiment_id == ids[0] else ("", ".difference")
