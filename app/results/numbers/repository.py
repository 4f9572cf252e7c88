"""Queries about results and time series."""

from collections.abc import Sequence

from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from app.results.numbers.downsampling import downsampled
from app.tables.results import ArmNote, MetricPoint, ResultValue


def values(session: Session, experiment_id: str) -> Sequence[ResultValue]:
    return session.scalars(select(ResultValue).where(ResultValue.experiment_id == experiment_id)).all()


def notes(session: Session, experiment_id: str) -> Sequence[ArmNote]:
    return session.scalars(select(ArmNote).where(ArmNote.experiment_id == experiment_id)).all()


def points(
    session: Session,
    experiment_id: str,
    arm: str | None,
    seed: int | None,
    name: str | None,
    max_points: int | None,
) -> Sequence[Row[str, int, str, int, float]]:
    """Rows (arm, seed, name, step, value), sorted by these columns; None is no filter.

    Each series is downsampled to at most ``max_points`` (at least 2).
    """
    series = (MetricPoint.arm, MetricPoint.seed, MetricPoint.name)
    query = select(*series, MetricPoint.step, MetricPoint.value).where(
        MetricPoint.experiment_id == experiment_id
    )
    for column, value in zip(series, (arm, seed, name), strict=True):
        if value is not None:
            query = query.where(column == value)
    query = (
        query.order_by(*series, MetricPoint.step) if max_points is None else downsampled(query, max_points)
    )
    return session.execute(query).all()
