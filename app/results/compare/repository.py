"""Queries about several experiments at once."""

import sys
from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.results.numbers.downsampling import downsampled
from app.tables.results import MetricPoint, ResultValue

Numbers = dict[str, dict[str, dict[str, dict[int, float]]]]
"""Experiment id -> arm -> metric -> seed -> value."""


def numbers(session: Session, ids: Sequence[str]) -> Numbers:
    """The final numbers that are not null."""
    columns = (
        ResultValue.experiment_id,
        ResultValue.arm,
        ResultValue.metric,
        ResultValue.seed,
        ResultValue.value,
    )
    query = select(*columns).where(ResultValue.experiment_id.in_(ids))
    values: Numbers = {i: {} for i in ids}
    for experiment_id, arm, metric, seed, value in session.execute(query.order_by(ResultValue.seed)):
        if value is not None:
            values[experiment_id].setdefault(arm, {}).setdefault(metric, {})[seed] = value
    return values


def curves(
    session: Session, ids: Sequence[str], names: Sequence[str], max_points: int
) -> dict[tuple[str, str, str], list[tuple[int, float]]]:
    """Means over seeds, without those that are not finite: (experiment id, arm, name) -> (step, value) by step."""
    columns = (MetricPoint.experiment_id, MetricPoint.arm, MetricPoint.name, MetricPoint.step)
    mean = func.avg(MetricPoint.value)
    query = (
        select(*columns, mean.label("value"))
        .where(MetricPoint.experiment_id.in_(ids), MetricPoint.name.in_(names))
        .group_by(*columns)
        .having(mean.between(-sys.float_info.max, sys.float_info.max))
    )
    series: dict[tuple[str, str, str], list[tuple[int, float]]] = {}
    for experiment_id, arm, name, step, value in session.execute(downsampled(query, max_points)):
        series.setdefault((experiment_id, arm, name), []).append((step, value))
    return series
