"""Downsampling of time series by the database."""

from typing import Any

from sqlalchemy import ColumnElement, Select, func, or_, select


def downsampled(query: Select[*tuple[Any, ...]], max_points: int) -> Select[*tuple[Any, ...]]:
    """At most ``max_points`` (at least 2) rows of each series, evenly spread, always with its first and last row.

    The columns of ``query`` need distinct names. The last two are the step, an integer, and the value; all columns
    before them identify the series. The rows are sorted by series and step.
    """
    points = query.subquery()
    *series, step, _ = points.c
    place = func.row_number().over(partition_by=series, order_by=step) - 1
    count = func.count().over(partition_by=series)
    numbered = select(points, place.label("place"), count.label("count")).subquery()
    # The k-th kept row is at place k (count - 1) / (max_points - 1), rounded. Solved for k, this is the only k that a
    # place can belong to; the place is kept if it is the one that this k rounds to.
    last, gaps = func.nullif(numbered.c.count - 1, 0), max_points - 1
    k = (2 * numbered.c.place * gaps + last) // (2 * last)
    kept = (2 * k * last + gaps) // (2 * gaps)
    columns: list[ColumnElement[Any]] = [numbered.c[column.name] for column in points.c]
    keep = or_(numbered.c.count <= max_points, numbered.c.place == kept)
    return select(*columns).where(keep).order_by(*columns[:-1])
