"""The query language of `where`, `sort` and `fields`.

A condition is ``FIELD OP VALUE`` with OP one of ``=  !=  <  <=  >  >=``. Spaces around OP are ignored; all other
spaces belong to VALUE. ``null`` as the value of = and != stands for a field that the row does not have. All conditions
must hold. An order is a field, for descending order with ``-`` before it.
"""

import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

from app.core.errors import InvalidError
from app.core.validation import FieldError, shown
from app.results.search.fields import DEFAULT, Field, find, matching, near

MAX_CONDITIONS = 20
NEWEST = "-created_at"
_CONDITION = re.compile(r"\s*([^\s=<>!]+)\s*(!=|<=|>=|=|<|>)\s*(.*?)\s*", re.DOTALL)
_T = TypeVar("_T")

Value = str | float | datetime | None


class Condition(NamedTuple):
    """``field op value``. A value of None: the row does not have the field (=), or has it (!=)."""

    field: Field
    op: str
    value: Value


class Order(NamedTuple):
    """The field that rows are sorted by. Rows without this field are left out."""

    field: Field
    descending: bool


class Search(NamedTuple):
    """A parsed query."""

    where: tuple[Condition, ...]
    order: Order
    fields: tuple[Field, ...]


def parse(where: list[str], sort: str | None, fields: str | None) -> Search:
    """Raises InvalidError with all errors: for each the value, and what is allowed or was probably meant."""
    errors: list[FieldError] = []

    def collect(parse_one: Callable[[str], _T], text: str) -> list[_T]:
        try:
            return [parse_one(text)]
        except InvalidError as error:
            errors.extend(error.errors)
            return []

    if len(where) > MAX_CONDITIONS:
        errors += InvalidError.of("where", len(where), f"allowed: at most {MAX_CONDITIONS} conditions").errors
    conditions = [one for text in where[:MAX_CONDITIONS] for one in collect(_condition, text)]
    order = collect(_order, sort or NEWEST)
    names = DEFAULT if fields is None else tuple(part.strip() for part in fields.split(","))
    chosen = {field.name: field for name in names for group in collect(_fields, name) for field in group}
    if errors:
        raise InvalidError.of_all(errors)
    return Search(tuple(conditions), order[0], tuple(chosen.values()))


def _condition(text: str) -> Condition:
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise InvalidError.of("where", text, "allowed: FIELD OP VALUE, such as attack.poisoning_rate>=0.05")
    name, op, value = match.groups()
    field = _known_field("where", name)
    if value == "null":
        if op not in ("=", "!="):
            raise InvalidError.of("where", text, "null can only be compared with = and !=")
        return Condition(field, op, None)
    try:
        return Condition(field, op, _value(field, op, value))
    except ValueError as error:
        raise InvalidError.of("where", text, str(error)) from error


def _value(field: Field, op: str, text: str) -> Value:
    """Raises ValueError that says what is allowed."""
    if field.source == "time":
        try:
            time = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(
                f"{field.name} must be compared with a time such as 2026-01-31T12:00:00Z"
            ) from None
        return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if field.number and math.isfinite(number):
        return number
    if field.number and not field.text:
        raise ValueError(f"{field.name} must be compared with a number, not with {shown(text)!r}")
    if op not in ("=", "!="):
        raise ValueError(f"{field.name} is text; allowed operators: = and !=")
    return text


def _order(text: str) -> Order:
    field = _known_field("sort", text.removeprefix("-"))
    if field.source in ("tag", "experiment") or field.name in ("experiment_id", "setting", "seeds"):
        raise InvalidError.of(
            "sort", text, "allowed: created_at, name, arm, a field of the spec, or results.METRIC"
        )
    return Order(field, text.startswith("-"))


def _fields(name: str) -> list[Field]:
    fields = matching(name)
    if not fields:
        raise _unknown("fields", name)
    return fields


def _known_field(parameter: str, name: str) -> Field:
    field = find(name)
    if field is None or field.source == "interval":
        raise _unknown(parameter, name)
    return field


def _unknown(parameter: str, name: str) -> InvalidError:
    close = near(name)
    hint = f"; did you mean {', '.join(close)}" if close else ""
    return InvalidError.of(parameter, name, f"unknown field {shown(name)!r}{hint}")
