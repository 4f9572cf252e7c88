"""From a question to SQL whose cost does not depend on how many experiments there are.

Two plans. If some condition fits few rows, those are gathered through its index, tested and sorted. Otherwise rows
are walked in the order asked for, through its index, and tested until a page is full; as every condition then fits
many rows, a page fills soon. Which one it is, is found by counting each condition's rows up to `FEW`.

Outer joins and ``coalesce`` below are there for the planners: without statistics SQLite would rather start with
whatever index fits and then sort everything. An outer join fixes the order of the tables, and an index is not used
for what stands inside ``coalesce``.
"""

import operator
from collections.abc import Callable
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, exists, false, func, literal, or_, select, true, tuple_
from sqlalchemy.orm import Session, aliased

from app.results.search.grammar import Condition, Order
from app.tables.experiments import Experiment, Label
from app.tables.search import ResultMean, ResultRow, SpecNumber, SpecText

FEW = 10_000
_ROWS: Any = ResultRow.__table__
_COMPARE: dict[str, Callable[[Any, Any], ColumnElement[bool]]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

Position = list[Any]
"""Where a page ended: the value sorted by, for a field of the spec the part's id, and the row's id."""


def page(
    session: Session, where: tuple[Condition, ...], order: Order, after: Position | None, limit: int
) -> list[Position]:
    """The positions of at most ``limit`` rows behind ``after``, in this order."""
    few = _fewest(session, where)
    query, columns = _gathered(few, order) if few is not None else _walked(order)
    query = query.where(*(_test(condition) for condition in where))
    if after is not None:
        query = query.where(_behind(columns, after, order.descending))
    ordered = [column.desc() if order.descending else column.asc() for column in columns]
    return [list(row) for row in session.execute(query.order_by(*ordered).limit(limit))]


def _behind(columns: list[Any], after: Position, descending: bool) -> ColumnElement[bool]:
    here = tuple_(*columns)
    there = tuple_(*(literal(value, column.type) for column, value in zip(columns, after, strict=True)))
    first = columns[0] <= after[0] if descending else columns[0] >= after[0]
    # The first column alone is what an index can start from when the others belong to another table.
    return and_(first, here < there if descending else here > there)


def _fewest(session: Session, where: tuple[Condition, ...]) -> Any | None:
    """The row ids of the owner, or of the condition, that fits the fewest; None if each fits more than `FEW`."""
    best, fewest = None, FEW + 1
    selecting = (condition for condition in where if _selects(condition))
    for ids in (select(ResultRow.id), *(_ids(condition, where) for condition in selecting)):
        bounded = ids.limit(FEW + 1).subquery()
        count = session.scalar(select(func.count()).select_from(bounded)) or 0
        if count < fewest:
            best, fewest = bounded, count
    return best


def _selects(condition: Condition) -> bool:
    """Whether an index leads to the rows that fit: not for what differs or is absent."""
    return condition.op != "!=" and condition.value is not None and condition.field.name != "seeds"


def _ids(condition: Condition, where: tuple[Condition, ...]) -> Select[Any]:
    """The ids of the rows that fit; of all owners where that is quicker, for `page` keeps the owner's own.

    Conditions on the same part of the spec are looked at together: each may fit many rows, and both none.
    """
    field, value = condition.field, condition.value
    compare = _COMPARE[condition.op]
    match field.source:
        case "metric":
            return select(ResultMean.row_id.label("id")).where(
                ResultMean.metric == field.key, compare(ResultMean.mean, value)
            )
        case "spec":
            facts = _facts(value)
            part: Any = getattr(ResultRow, f"{field.part}_id")
            others = [
                c for c in where if c is not condition and c.field.part == field.part and c.value is not None
            ]
            return (
                select(ResultRow.id)
                .select_from(facts)
                .outerjoin(ResultRow, part == facts.part_id)
                .where(
                    facts.path == field.key, compare(facts.value, value), func.coalesce(ResultRow.id, 0) > 0
                )
                .where(*(_of_part(facts.part_id, other) for other in others))
            )
        case "tag":
            label: Any = Label.__table__
            joined = label.join(_ROWS, _ROWS.c.experiment_id == label.c.experiment_id)
            wanted = (label.c.kind == "tag", label.c.key == field.key, compare(label.c.value, value))
            return select(_ROWS.c.id).select_from(joined).where(*wanted)
        case "experiment":
            table: Any = Experiment.__table__
            joined = table.join(_ROWS, _ROWS.c.experiment_id == table.c.id)
            return select(_ROWS.c.id).select_from(joined).where(compare(table.c[field.key], value))
        case _ if field.key == "experiment_id":
            return select(_ROWS.c.id).where(compare(_ROWS.c.experiment_id, value))
        case _:
            return select(ResultRow.id).where(compare(getattr(ResultRow, field.key), value))


def _of_part(part: Any, condition: Condition) -> ColumnElement[bool]:
    """Whether the part with this id fits a condition on one of its fields."""
    fact = aliased(_facts(condition.value))
    compare = _COMPARE[condition.op]
    return exists().where(
        fact.part_id == part, fact.path == condition.field.key, compare(fact.value, condition.value)
    )


def _test(condition: Condition) -> ColumnElement[bool]:
    """Whether a row of `ResultRow` fits."""
    field, value = condition.field, condition.value
    compare = _COMPARE[condition.op]
    if field.source in ("row", "time"):
        column: Any = getattr(ResultRow, field.key)
        if value is None:
            return false() if condition.op == "=" else true()  # no row is without them
        return compare(func.coalesce(column, column), value)
    if value is None:
        there = or_(*(_has(condition, facts) for facts in (SpecNumber, SpecText)))
        return ~there if condition.op == "=" else there
    return _has(condition, _facts(value), compare)


def _has(
    condition: Condition,
    facts: type[SpecNumber] | type[SpecText],
    compare: Callable[[Any, Any], ColumnElement[bool]] = lambda _column, _value: true(),
) -> ColumnElement[bool]:
    """Whether a row has the field, with a value that ``compare`` accepts."""
    field, value = condition.field, condition.value
    # Aliases, because the order may stand on the same table.
    match field.source:
        case "metric":
            mean = aliased(ResultMean)
            mine = (mean.row_id == ResultRow.id, mean.metric == field.key)
            return exists().where(*mine, compare(mean.mean, value))
        case "tag":
            label = aliased(Label)
            named = (
                label.experiment_id == ResultRow.experiment_id,
                label.kind == "tag",
                label.key == field.key,
            )
            return exists().where(*named, compare(label.value, value))
        case "experiment":
            experiment = aliased(Experiment)
            column = getattr(experiment, field.key)
            return exists().where(experiment.id == ResultRow.experiment_id, compare(column, value))
        case _:
            fact = aliased(facts)
            part = getattr(ResultRow, f"{field.part}_id")
            return exists().where(fact.part_id == part, fact.path == field.key, compare(fact.value, value))


def _walked(order: Order) -> tuple[Select[Any], list[Any]]:
    """All rows in order, by an index."""
    field = order.field
    if field.source in ("row", "time"):
        columns = [getattr(ResultRow, field.key), ResultRow.id]
        return select(*columns), columns
    table, mine, columns = _sorted_by(order)
    query = (
        select(*columns)
        .select_from(table)
        .outerjoin(ResultRow, _link(order))
        .where(*mine, func.coalesce(ResultRow.id, 0) > 0)
    )
    return query, columns


def _gathered(few: Any, order: Order) -> tuple[Select[Any], list[Any]]:
    """The rows whose ids are among ``few``."""
    field = order.field
    if field.source in ("row", "time"):
        columns = [getattr(ResultRow, field.key), ResultRow.id]
        query = select(*columns).select_from(few).outerjoin(ResultRow, ResultRow.id == few.c.id)
        return query.where(func.coalesce(ResultRow.id, 0) > 0), columns
    table, mine, columns = _sorted_by(order)
    query = (
        select(*columns)
        .select_from(few)
        .outerjoin(ResultRow, ResultRow.id == few.c.id)
        .outerjoin(table, and_(_link(order), *mine))
        .where(func.coalesce(ResultRow.id, 0) > 0, columns[0].is_not(None))
    )
    return query, columns


def _sorted_by(order: Order) -> tuple[Any, list[ColumnElement[bool]], list[Any]]:
    """The table with the value, which of its rows count, and what positions are made of."""
    field = order.field
    if field.source == "metric":
        return ResultMean, [ResultMean.metric == field.key], [ResultMean.mean, ResultMean.row_id]
    facts = SpecNumber if field.number else SpecText
    return facts, [facts.path == field.key], [facts.value, facts.part_id, ResultRow.id]


def _link(order: Order) -> ColumnElement[bool]:
    field = order.field
    if field.source == "metric":
        return ResultMean.row_id == ResultRow.id
    facts = SpecNumber if field.number else SpecText
    part: Any = getattr(ResultRow, f"{field.part}_id")
    linked: ColumnElement[bool] = facts.part_id == part
    return linked


def _facts(value: Any) -> type[SpecNumber] | type[SpecText]:
    return SpecNumber if isinstance(value, float) else SpecText
