"""Thinning of curves, by the database."""

from typing import Any

from sqlalchemy import ColumnElement, Select, func, or_, select


def thinned(query: Select[*tuple[Any, ...]], most: int) -> Select[*tuple[Any, ...]]:
    """At most ``most`` (at least 2) rows of each series, evenly spread; the first and the last stay.

    ``query`` has columns of its own names; the last two are the step, an integer, and the value, all before them tell
    one series from another. The rows come in order.
    """
    points = query.subquery()
    *series, step, _ = points.c
    place = func.row_number().over(partition_by=series, order_by=step) - 1
    count = func.count().over(partition_by=series)
    every = select(points, place.label("place"), count.label("count")).subquery()
    # The k-th that is kept has the place k (count - 1) / (most - 1), rounded; so this is the k that a place may have.
    last, gaps = func.nullif(every.c.count - 1, 0), most - 1
    k = (2 * every.c.place * gaps + last) // (2 * last)
    kept = (2 * k * last + gaps) // (2 * gaps)
    columns: list[ColumnElement[Any]] = [every.c[column.name] for column in points.c]
    wanted = or_(every.c.count <= most, every.c.place == kept)
    return select(*columns).where(wanted).order_by(*columns[:-1])
