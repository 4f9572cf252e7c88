"""Queries about several experiments at once."""

import sys
from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.results.numbers.downsampling import thinned
from app.tables.experiments import Experiment
from app.tables.results import MetricPoint, ResultValue

Numbers = dict[str, dict[str, dict[str, dict[int, float]]]]
"""Experiment -> arm -> metric -> seed -> value."""


def experiments(session: Session, ids: Sequence[str]) -> dict[str, Experiment]:
    """Those that are there, one look each: asked for all at once SQLite would go through all that the owner has."""
    found = (session.get(Experiment, i) for i in ids)
    return {experiment.id: experiment for experiment in found if experiment is not None}


def numbers(session: Session, ids: Sequence[str]) -> Numbers:
    """Final numbers; those that are null are left out."""
    columns = (
        ResultValue.experiment_id,
        ResultValue.arm,
        ResultValue.metric,
        ResultValue.seed,
        ResultValue.value,
    )
    query = select(*columns).where(ResultValue.experiment_id.in_(ids))
    found: Numbers = {i: {} for i in ids}
    for experiment_id, arm, metric, seed, value in session.execute(query.order_by(ResultValue.seed)):
        if value is not None:
            found[experiment_id].setdefault(arm, {}).setdefault(metric, {})[seed] = value
    return found


def curves(
    session: Session, ids: Sequence[str], names: Sequence[str], most: int
) -> dict[tuple[str, str, str], list[tuple[int, float]]]:
    """Means over seeds, where they are finite: (experiment, arm, name) -> at most ``most`` (step, value) in order."""
    columns = (MetricPoint.experiment_id, MetricPoint.arm, MetricPoint.name, MetricPoint.step)
    mean = func.avg(MetricPoint.value)
    query = (
        select(*columns, mean.label("value"))
        .where(MetricPoint.experiment_id.in_(ids), MetricPoint.name.in_(names))
        .group_by(*columns)
        .having(mean.between(-sys.float_info.max, sys.float_info.max))
    )
    found: dict[tuple[str, str, str], list[tuple[int, float]]] = {}
    for experiment_id, arm, name, step, value in session.execute(thinned(query, most)):
        found.setdefault((experiment_id, arm, name), []).append((step, value))
    return found
