"""Queries about numbers."""

from collections.abc import Sequence

from sqlalchemy import Row, func, or_, select
from sqlalchemy.orm import Session

from app.results.tables import ArmNote, MetricPoint, ResultValue


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
    if most is None:
        return session.execute(query.order_by(*series, MetricPoint.step)).all()
    place = func.row_number().over(partition_by=series, order_by=MetricPoint.step) - 1
    count = func.count().over(partition_by=series)
    every = query.add_columns(place.label("place"), count.label("count")).subquery().c
    # The k-th that is kept has the place k (count - 1) / (most - 1), rounded; so this is the k that a place may have.
    last, gaps = func.nullif(every.count - 1, 0), most - 1
    k = (2 * every.place * gaps + last) // (2 * last)
    kept = (2 * k * last + gaps) // (2 * gaps)
    columns = (every.arm, every.seed, every.name, every.step, every.value)
    thinned = select(*columns).where(or_(every.count <= most, every.place == kept))
    return session.execute(thinned.order_by(*columns[:-1])).all()
