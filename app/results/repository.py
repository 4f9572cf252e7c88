"""Queries about numbers."""

from collections.abc import Sequence

from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from app.results.tables import ArmNote, MetricPoint, ResultValue


def values(session: Session, experiment_id: str) -> Sequence[ResultValue]:
    return session.scalars(select(ResultValue).where(ResultValue.experiment_id == experiment_id)).all()


def notes(session: Session, experiment_id: str) -> Sequence[ArmNote]:
    return session.scalars(select(ArmNote).where(ArmNote.experiment_id == experiment_id)).all()


def points(
    session: Session, experiment_id: str, arm: str | None, seed: int | None, name: str | None
) -> Sequence[Row[str, int, str, int, float]]:
    """(arm, seed, name, step, value) in this order; None is any."""
    query = select(
        MetricPoint.arm, MetricPoint.seed, MetricPoint.name, MetricPoint.step, MetricPoint.value
    ).where(MetricPoint.experiment_id == experiment_id)
    for column, wanted in ((MetricPoint.arm, arm), (MetricPoint.seed, seed), (MetricPoint.name, name)):
        if wanted is not None:
            query = query.where(column == wanted)
    order = (MetricPoint.arm, MetricPoint.seed, MetricPoint.name, MetricPoint.step)
    return session.execute(query.order_by(*order)).all()
