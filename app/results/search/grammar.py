"""The language of `where`, `sort` and `fields`.

A condition is ``FIELD OP VALUE`` with OP one of ``=  !=  <  <=  >  >=``; spaces around OP do not matter, all others
belong to the value. ``null`` as the value of = and != means that the row has no such field. Several conditions must
all hold. An order is a field, with ``-`` before it the largest first.
"""

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from app.core.errors import InvalidError, summary
from app.core.validation import FieldError, shown
from app.results.search.fields import DEFAULT, Field, find, matching, near

MOST_CONDITIONS = 20
NEWEST = "-created_at"
_CONDITION = re.compile(r"\s*([^\s=<>!]+)\s*(!=|<=|>=|=|<|>)\s*(.*?)\s*", re.DOTALL)

Value = str | float | datetime | None


class Condition(NamedTuple):
    """``field op value``. A value of None: the field is absent (=) or present (!=)."""

    field: Field
    op: str
    value: Value


class Order(NamedTuple):
    """By which field rows are sorted. Rows without the field are left out."""

    field: Field
    descending: bool


@dataclass(frozen=True)
class Question:
    """What a client wants to know."""

    where: tuple[Condition, ...]
    order: Order
    fields: tuple[Field, ...]


def parse(where: list[str], sort: str | None, fields: str | None) -> Question:
    """Raises InvalidError that names each fault: what was there, and what is allowed or was perhaps meant."""
    faults: list[FieldError] = []
    if len(where) > MOST_CONDITIONS:
        faults.append(_fault("where", len(where), f"allowed: at most {MOST_CONDITIONS} conditions"))
    conditions = [c for text in where[:MOST_CONDITIONS] if (c := _condition(text, faults)) is not None]
    order = _order(sort or NEWEST, faults)
    shown_fields = _fields(fields, faults)
    if faults or order is None:
        raise InvalidError(summary(faults), faults)
    return Question(tuple(conditions), order, tuple(shown_fields))


def _condition(text: str, faults: list[FieldError]) -> Condition | None:
    match = _CONDITION.fullmatch(text)
    if match is None:
        faults.append(_fault("where", text, "allowed: FIELD OP VALUE, such as attack.poisoning_rate>=0.05"))
        return None
    name, op, value = match.groups()
    field = find(name)
    if field is None or field.source == "interval":
        faults.append(_unknown("where", name))
        return None
    if value == "null":
        if op not in ("=", "!="):
            faults.append(_fault("where", text, "null can only be compared with = and !="))
            return None
        return Condition(field, op, None)
    try:
        return Condition(field, op, _value(field, op, value))
    except ValueError as error:
        faults.append(_fault("where", text, str(error)))
        return None


def _value(field: Field, op: str, text: str) -> Value:
    """Raises ValueError with what is allowed."""
    if field.source == "time":
        try:
            time = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(f"{field.name} is compared with a time such as 2026-01-31T12:00:00Z") from None
        return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if field.number and math.isfinite(number):
        return number
    if field.number and not field.text:
        raise ValueError(f"{field.name} is compared with a number, not with {shown(text)!r}")
    if op not in ("=", "!="):
        raise ValueError(f"{field.name} is a text: allowed are = and !=")
    return text


def _order(text: str, faults: list[FieldError]) -> Order | None:
    name = text.removeprefix("-")
    field = find(name)
    if field is None or field.source == "interval":
        faults.append(_unknown("sort", name))
        return None
    if field.source in ("tag", "experiment") or field.name in ("experiment_id", "setting", "seeds"):
        faults.append(
            _fault("sort", text, "allowed: created_at, name, arm, a field of the spec, or results.METRIC")
        )
        return None
    return Order(field, text.startswith("-"))


def _fields(text: str | None, faults: list[FieldError]) -> list[Field]:
    names = DEFAULT if text is None else tuple(part.strip() for part in text.split(","))
    chosen: dict[str, Field] = {}
    for name in names:
        found = matching(name)
        if not found:
            faults.append(_unknown("fields", name))
        chosen |= {field.name: field for field in found}
    return list(chosen.values())


def _unknown(parameter: str, name: str) -> FieldError:
    close = near(name)
    hint = f"; did you mean {', '.join(close)}" if close else ""
    return _fault(parameter, name, f"unknown field {shown(name)!r}{hint}")


def _fault(parameter: str, value: object, message: str) -> FieldError:
    return FieldError(field=parameter, value=shown(value), message=message)
