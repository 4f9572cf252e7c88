"""Results and time series of one experiment."""

import math
from itertools import groupby
from typing import Any

from app.core.context import Context
from app.core.table_formats import Column, columns
from app.results.numbers import repository
from app.results.numbers.schemas import Aggregate, ArmResults, Metrics, Results, Series
from app.specs.metrics import METRICS
from app.specs.stored import StoredSpec
from app.tables.experiments import check_experiment, require_experiment


def results(context: Context, experiment_id: str) -> Results:
    """Numbers of each arm and seed, and aggregated over seeds; arms in the order of the spec. Raises NotFoundError."""
    with context.database.reading() as session:
        experiment = require_experiment(session, experiment_id)
        arms = StoredSpec(experiment.spec).arms
        values = repository.values(session, experiment_id)
        notes = repository.notes(session, experiment_id)
    seeds: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in arms}
    for row in values:
        seeds.setdefault(row.arm, {}).setdefault(row.seed, {})[row.metric] = _finite(row.value)
    warnings = [note.message for note in notes if note.arm not in seeds]
    for note in notes:
        if note.arm not in seeds:
            continue
        entry = seeds[note.arm].setdefault(note.seed, {})
        if note.kind == "error":
            entry["error"] = note.message
        else:
            entry.setdefault("warnings", []).append(note.message)
    return Results(
        experiment_id=experiment_id,
        arms=[_arm(arm, entries) for arm, entries in seeds.items() if entries],
        warnings=warnings,
    )


def _arm(arm: str, entries: dict[int, dict[str, Any]]) -> ArmResults:
    names = sorted({name for entry in entries.values() for name in entry}, key=_rank)
    values = {n: [e[n] for e in entries.values() if isinstance(e.get(n), float)] for n in names}
    return ArmResults(
        arm=arm,
        aggregate={n: aggregate for n, column in values.items() if (aggregate := Aggregate.of(column))},
        seeds=[
            {"seed": seed, **{n: entries[seed][n] for n in names if n in entries[seed]}}
            for seed in sorted(entries)
        ],
    )


def as_table(document: Results, for_people: bool) -> tuple[list[Column], list[dict[str, Any]]]:
    """Columns, and one row for each arm and seed; a cell is empty if the number is undefined or not yet known.

    People get the columns that have a value, programs always the same ones.
    """
    rows = [
        {"experiment_id": document.experiment_id, "arm": arm.arm, **entry}
        for arm in document.arms
        for entry in arm.seeds
    ]
    first = ("experiment_id", "arm", "seed")
    others = sorted({name for row in rows for name in row} - {*first, *METRICS, "warnings", "error"})
    names = [*first, *METRICS, *others, "error"]
    if for_people:
        names = [name for name in names if any(row.get(name) is not None for row in rows)]
    return columns(*names), rows


def metrics(
    context: Context,
    experiment_id: str,
    arm: str | None,
    seed: int | None,
    name: str | None,
    max_points: int | None,
) -> Metrics:
    """Time series, each downsampled to at most ``max_points``. Raises NotFoundError."""
    with context.database.reading() as session:
        check_experiment(session, experiment_id)
        rows = repository.points(session, experiment_id, arm, seed, name, max_points)
    series = []
    for (of_arm, of_seed, of_name), group in groupby(rows, key=lambda row: tuple(row[:3])):
        points = list(group)
        steps, values = [p.step for p in points], [_finite(p.value) for p in points]
        series.append(Series(arm=of_arm, seed=of_seed, name=of_name, steps=steps, values=values))
    return Metrics(series=series)


def _finite(value: float | None) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if value is not None and math.isfinite(value) else None


def _rank(name: str) -> tuple[int, str]:
    return (METRICS.index(name) if name in METRICS else len(METRICS), name)
