"""SQL for a search, written so that its cost does not grow with the number of experiments.

There are two plans. If one condition holds for at most `FEW` rows, these candidates are found by the index of that
condition, tested against the other conditions, and sorted. Otherwise all rows are read in the requested order by the
index of the sort field and tested until the page is full. This ends early because then every condition holds for more
than `FEW` rows. To choose, the rows of each condition are counted, up to `FEW` + 1.

Ownership: the session adds its owner to every use of the ORM class `ResultRow`, in an outer join to the ON clause.
Each query that returns rows takes them from `ResultRow`. Everything else (Core tables, which are not filtered) only
selects ids and values that are joined to it.

SQLite has no statistics here and would often start with the wrong index. Two constructs keep it from doing so:

- An outer join fixes the order of the tables. ``coalesce(id, 0) > 0`` then removes the rows without a match, and
  those of other owners. With ``id IS NOT NULL`` SQLite would turn the outer join back into an inner one.
- ``coalesce(column, column)`` is the column, but no index can serve it, so the index of the sort field is used.
"""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, exists, false, func, literal, or_, select, true, tuple_
from sqlalchemy.orm import Session

from app.results.search.fields import Field
from app.results.search.grammar import Condition, Order
from app.tables.experiments import Experiment, Label
from app.tables.search import ResultMean, ResultRow, SpecNumber, SpecText

FEW = 10_000
_ALL_ROWS: Any = ResultRow.__table__
"""The rows of all owners."""
_EXISTS: ColumnElement[bool] = func.coalesce(ResultRow.id, 0) > 0
_COMPARE: dict[str, Callable[[Any, Any], ColumnElement[bool]]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

Position = list[Any]
"""The place of a row in an order: the sort value, for a field of the spec the id of the part, and the row id."""


class _Values(NamedTuple):
    """The values of a field that is not a column of `ResultRow`, in a table of their own."""

    table: Any
    link: ColumnElement[bool]
    """Whether an entry belongs to a row of results."""
    named: ColumnElement[bool]
    """Whether an entry is of this field."""
    value: Any
    ids: list[Any]
    """What makes the position of a row unique; the index of the table continues with these columns."""


def page(
    session: Session, where: tuple[Condition, ...], order: Order, after: Position | None, limit: int
) -> list[Position]:
    """The positions of at most ``limit`` rows that meet all conditions, in this order, starting after ``after``."""
    query, columns = _ordered(order, _fewest_candidates(session, where))
    query = query.where(*(_holds(condition) for condition in where))
    if after is not None:
        query = query.where(_is_after(columns, after, order.descending))
    sorting = [column.desc() if order.descending else column.asc() for column in columns]
    return [list(row) for row in session.execute(query.order_by(*sorting).limit(limit))]


def _is_after(columns: list[Any], after: Position, descending: bool) -> ColumnElement[bool]:
    row = tuple_(*columns)
    last = tuple_(*(literal(value, column.type) for column, value in zip(columns, after, strict=True)))
    # The columns may belong to two tables. Then no index serves the comparison of tuples, but one serves this.
    first = columns[0] <= after[0] if descending else columns[0] >= after[0]
    return and_(first, row < last if descending else row > last)


def _fewest_candidates(session: Session, where: tuple[Condition, ...]) -> Any | None:
    """The row ids of the most selective condition, or all of the owner if they are fewer; None if all exceed `FEW`."""
    best, fewest = None, FEW + 1
    selective = (condition for condition in where if _has_index(condition))
    for ids in (select(ResultRow.id), *(candidates(condition, where) for condition in selective)):
        bounded = ids.limit(FEW + 1).subquery()
        count = session.scalar(select(func.count()).select_from(bounded)) or 0
        if count < fewest:
            best, fewest = bounded, count
    return best


def _has_index(condition: Condition) -> bool:
    """Whether an index finds the rows for which the condition holds."""
    return condition.op != "!=" and condition.value is not None and condition.field.name != "seeds"


def candidates(condition: Condition, where: tuple[Condition, ...]) -> Select[Any]:
    """The ids of the rows for which the condition holds.

    Where the owner is not part of the index, they include those of other owners: with a filter behind the index, the
    limit of the count would not bound the number of entries that are read.
    """
    field = condition.field
    compare = _COMPARE[condition.op]
    if field.name == "experiment_id":
        return select(_ALL_ROWS.c.id).where(compare(_ALL_ROWS.c.experiment_id, condition.value))
    if field.source in ("row", "time"):
        return select(ResultRow.id).where(compare(getattr(ResultRow, field.key), condition.value))
    if field.source == "spec":
        values = _values(field, condition.value)
        # Two conditions on one part may each hold for many rows and together for none. So the part is tested first.
        same_part = [
            _holds_for_part(values.table.c.part_id, other)
            for other in where
            if other is not condition and other.field.part == field.part and other.value is not None
        ]
        query = select(ResultRow.id).select_from(values.table).outerjoin(ResultRow, values.link)
        return query.where(values.named, compare(values.value, condition.value), _EXISTS, *same_part)
    values = _values(field, condition.value, _ALL_ROWS.c)
    holds = and_(values.named, compare(values.value, condition.value))
    if field.source == "metric":
        return select(values.table.c.row_id.label("id")).where(holds)
    return select(_ALL_ROWS.c.id).select_from(values.table.join(_ALL_ROWS, values.link)).where(holds)


def _holds_for_part(part_id: Any, condition: Condition) -> ColumnElement[bool]:
    values = _values(condition.field, condition.value)
    compared = _COMPARE[condition.op](values.value, condition.value)
    return exists().where(values.table.c.part_id == part_id, values.named, compared)


def _holds(condition: Condition) -> ColumnElement[bool]:
    """Whether the condition holds for a row of `ResultRow`."""
    field, value = condition.field, condition.value
    compare = _COMPARE[condition.op]
    if field.source in ("row", "time"):
        column: Any = getattr(ResultRow, field.key)
        if value is None:
            return false() if condition.op == "=" else true()  # these columns are never null
        return compare(func.coalesce(column, column), value)
    if value is None:
        # A field of the spec may be a number for one attack and a text for another.
        types: tuple[float | str, ...] = (0.0, "") if field.source == "spec" else (0.0,)
        present = or_(*(_entry_exists(_values(field, one)) for one in types))
        return ~present if condition.op == "=" else present
    values = _values(field, value)
    return _entry_exists(values, compare(values.value, value))


def _entry_exists(values: _Values, *compared: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists().where(values.link, values.named, *compared)


def _ordered(order: Order, few: Any | None) -> tuple[Select[Any], list[Any]]:
    """The rows to test, and the columns to sort them by: the candidates ``few``, or else all, by the index."""
    field = order.field
    if field.source in ("row", "time"):
        columns = [getattr(ResultRow, field.key), ResultRow.id]
        if few is None:
            return select(*columns), columns
        query = select(*columns).select_from(few).outerjoin(ResultRow, ResultRow.id == few.c.id)
        return query.where(_EXISTS), columns
    values = _values(field, 0.0 if field.number else "")
    columns = [values.value, *values.ids]
    if few is None:
        query = select(*columns).select_from(values.table).outerjoin(ResultRow, values.link)
        return query.where(values.named, _EXISTS), columns
    query = select(*columns).select_from(few).outerjoin(ResultRow, ResultRow.id == few.c.id)
    query = query.outerjoin(values.table, and_(values.link, values.named))
    return query.where(_EXISTS, values.value.is_not(None)), columns


def _values(field: Field, value: Any, rows: Any = ResultRow) -> _Values:
    """Where the values of ``field`` of the type of ``value`` are stored. A new alias each time."""
    match field.source:
        case "metric":
            table: Any = ResultMean.__table__.alias()
            named = table.c.metric == field.key
            return _Values(table, table.c.row_id == rows.id, named, table.c.mean, [table.c.row_id])
        case "tag":
            table = Label.__table__.alias()
            named = and_(table.c.kind == "tag", table.c.key == field.key)
            return _Values(table, table.c.experiment_id == rows.experiment_id, named, table.c.value, [])
        case "experiment":
            table = Experiment.__table__.alias()
            return _Values(table, table.c.id == rows.experiment_id, true(), table.c[field.key], [])
        case _:
            table = (SpecNumber if isinstance(value, float) else SpecText).__table__.alias()
            link = table.c.part_id == getattr(rows, f"{field.part}_id")
            return _Values(table, link, table.c.path == field.key, table.c.value, [table.c.part_id, rows.id])
