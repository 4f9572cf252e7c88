"""Results and time series of one experiment."""

import csv
import io
import math
from itertools import groupby
from typing import Any

from app.core.context import Context
from app.results.numbers import repository
from app.results.numbers.schemas import Aggregate, ArmResults, Metrics, Results, Series
from app.specs.metrics import METRICS, summarize
from app.specs.stored import StoredSpec
from app.tables.experiments import require_experiment


def results(context: Context, experiment_id: str) -> Results:
    """Per arm and seed, and aggregated over seeds; arms in the order of the spec. Raises NotFoundError."""
    with context.database.reading() as session:
        experiment = require_experiment(session, experiment_id)
        arms = StoredSpec(experiment.spec).arms
        values = repository.values(session, experiment_id)
        notes = repository.notes(session, experiment_id)
    seeds: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in arms}
    for row in values:
        seeds.setdefault(row.arm, {}).setdefault(row.seed, {})[row.metric] = _finite(row.value)
    of_all = [note.message for note in notes if note.arm not in seeds]
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
        warnings=of_all,
    )


def _arm(arm: str, entries: dict[int, dict[str, Any]]) -> ArmResults:
    names = sorted({name for entry in entries.values() for name in entry}, key=_rank)
    columns = {n: [e[n] for e in entries.values() if isinstance(e.get(n), float)] for n in names}
    return ArmResults(
        arm=arm,
        aggregate={n: Aggregate.model_validate(summarize(column)) for n, column in columns.items() if column},
        seeds=[
            {"seed": seed, **{n: entries[seed][n] for n in names if n in entries[seed]}}
            for seed in sorted(entries)
        ],
    )


def as_csv(found: Results) -> str:
    """One row for each arm and seed; an empty cell has no meaning or is not known yet."""
    rows = [(arm.arm, entry) for arm in found.arms for entry in arm.seeds]
    extra = sorted({n for _, e in rows for n in e} - {*METRICS, "seed", "warnings", "error"})
    columns = [*METRICS, *extra, "error"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["experiment_id", "arm", "seed", *columns])
    for arm, entry in rows:
        writer.writerow([found.experiment_id, arm, entry["seed"], *(entry.get(c) for c in columns)])
    return text.getvalue()


def metrics(
    context: Context,
    experiment_id: str,
    arm: str | None,
    seed: int | None,
    name: str | None,
    most: int | None,
) -> Metrics:
    """Time series, each thinned to at most ``most`` points. Raises NotFoundError."""
    with context.database.reading() as session:
        require_experiment(session, experiment_id)
        rows = repository.points(session, experiment_id, arm, seed, name, most)
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
