"""Searching results."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.core import pagination
from app.core.context import Context
from app.results.search import grammar, plans, repository
from app.results.search.fields import Field
from app.results.search.grammar import Order


@dataclass(frozen=True)
class Found:
    """A page of rows, the fields that they show, and the cursor of the next page if there is one."""

    rows: list[dict[str, Any]]
    fields: tuple[Field, ...]
    cursor: str | None


def search(
    context: Context, where: list[str], sort: str | None, fields: str | None, cursor: str | None, limit: int
) -> Found:
    """Raises InvalidError for a question that cannot be read, BadRequestError for a cursor that does not fit it."""
    question = grammar.parse(where, sort, fields)
    asked = [where, sort]
    after = None
    if cursor is not None:
        after = _position(question.order, pagination.decode(context.signer, asked, cursor))
    with context.database.reading() as session:
        positions = plans.page(session, question.where, question.order, after, limit + 1)
        ids = [position[-1] for position in positions[:limit]]
        rows = [_typed(row, question.fields) for row in repository.rows(session, ids, question.fields)]
    following = None
    if len(positions) > limit:
        last = [v.isoformat() if isinstance(v, datetime) else str(v) for v in positions[limit - 1]]
        following = pagination.encode(context.signer, asked, last)
    return Found(rows, question.fields, following)


def _position(order: Order, texts: list[str]) -> list[Any]:
    first: Any = texts[0]
    if order.field.source == "time":
        first = datetime.fromisoformat(first)
    elif order.field.number:
        first = float(first)
    return [first, *(int(text) for text in texts[1:])]


def _typed(row: dict[str, Any], fields: tuple[Field, ...]) -> dict[str, Any]:
    """Times as text; whole numbers and truth values of a spec as what they are, for the index keeps neither."""
    return {field.name: _plain(field, row[field.name]) for field in fields}


def _plain(field: Field, value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if field.source != "spec":
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    return {"true": True, "false": False}.get(value, value)
