"""Searching results."""

from datetime import datetime
from typing import Any

from app.core.context import Context
from app.core.pagination import Position, paginate
from app.results.search import grammar, plans, repository
from app.results.search.fields import Field


def search(
    context: Context, where: list[str], sort: str | None, fields: str | None, cursor: str | None, limit: int
) -> tuple[list[dict[str, Any]], tuple[Field, ...], str | None]:
    """One page of rows, the fields that they show, and the cursor of the next page.

    Raises InvalidError for a malformed query, BadRequestError for a cursor of another query.
    """
    query = grammar.parse(where, sort, fields)
    first = query.order.field

    def parse(position: Position) -> plans.Position:
        value: Any = position[0]
        if first.source == "time":
            value = datetime.fromisoformat(value)
        elif first.number:
            value = float(value)
        return [value, *(int(text) for text in position[1:])]

    def render(position: plans.Position) -> Position:
        return [value.isoformat() if isinstance(value, datetime) else str(value) for value in position]

    with context.database.reading() as session:
        positions, following = paginate(
            context.signer,
            [where, sort],
            cursor,
            limit,
            lambda after, most: plans.page(
                session, query.where, query.order, parse(after) if after is not None else None, most
            ),
            render,
        )
        rows = repository.rows(session, [position[-1] for position in positions], query.fields)
    typed = [{field.name: _typed(field, row[field.name]) for field in query.fields} for row in rows]
    return typed, query.fields, following


def _typed(field: Field, value: Any) -> Any:
    """Times as text, and the integers and booleans of a spec, which the index stores as floats and texts."""
    if isinstance(value, datetime):
        return value.isoformat()
    if field.source != "spec":
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    return {"true": True, "false": False}.get(value, value)
