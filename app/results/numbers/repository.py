"""Queries about numbers."""

from collections.abc import Sequence

from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from app.results.numbers.downsampling import thinned
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
    most: int | None,
) -> Sequence[Row[str, int, str, int, float]]:
    """(arm, seed, name, step, value) in this order; None is any.

    Of each series at most ``most`` (at least 2), evenly spread; the first and the last stay.
    """
    series = (MetricPoint.arm, MetricPoint.seed, MetricPoint.name)
    query = select(*series, MetricPoint.step, MetricPoint.value).where(
        MetricPoint.experiment_id == experiment_id
    )
    for column, wanted in zip(series, (arm, seed, name), strict=True):
        if wanted is not None:
            query = query.where(column == wanted)
    query = query.order_by(*series, MetricPoint.step) if most is None else thinned(query, most)
    return session.execute(query).all()
