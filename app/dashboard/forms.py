"""Fields of a form from the JSON schema of a part of the spec, as the catalog gives it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from app.data.catalog.schemas import Entry

Kind = Literal["integer", "number", "boolean", "choice", "json", "text"]
RANGE = (
    ("minimum", "at least"),
    ("exclusiveMinimum", "more than"),
    ("maximum", "at most"),
    ("exclusiveMaximum", "less than"),
)


class FormField(NamedTuple):
    """One hyper-parameter. ``name`` is its path within its part, with dots; an empty ``value`` leaves the default."""

    name: str
    kind: Kind
    default: str
    value: str
    hint: str
    source: str
    choices: tuple[str, ...]
    bounds: dict[str, Any]


def fields(entry: Entry, given: Mapping[str, Any] | None = None) -> list[FormField]:
    """Every field of a catalog entry but its name and key, nested ones in their place.

    ``given`` is that part of a spec that the form starts from.
    """
    return list(_fields(entry.schema_, entry.defaults, given or {}, entry.schema_.get("$defs", {}), ""))


def _fields(
    schema: Mapping[str, Any],
    defaults: Mapping[str, Any],
    values: Mapping[str, Any],
    known: Mapping[str, Any],
    prefix: str,
) -> Iterator[FormField]:
    for name, given in schema["properties"].items():
        if name in ("name", "key"):
            continue
        default = defaults.get(name)
        value = values.get(name, default)
        if "$ref" in given:
            inner = known[given["$ref"].rpartition("/")[2]]
            yield from _fields(inner, default or {}, value or {}, known, f"{prefix}{name}.")
            continue
        some: Mapping[str, Any] = next((s for s in given.get("anyOf", ()) if s.get("type") != "null"), {})
        yield _field(
            prefix + name, {**given, **some, "description": given.get("description", "")}, default, value
        )


def _field(name: str, given: Mapping[str, Any], default: Any, value: Any) -> FormField:
    kind = _kind(given)
    bounds = {}
    if kind in ("integer", "number"):
        bounds = {"step": 1 if kind == "integer" else "any"}
        bounds |= {
            short: given[long] for long, short in (("minimum", "min"), ("maximum", "max")) if long in given
        }
    limits = [f"{word} {given[key]:g}" for key, word in RANGE if key in given]
    allowed = f"{' and '.join(limits)} {given.get('unit', '')}".strip() if limits else given.get("unit", "")
    hint = " ".join(part for part in (given["description"], f"({allowed})" if allowed else "") if part)
    return FormField(
        name,
        kind,
        _text(default),
        "" if value == default else _text(value),
        hint,
        given.get("source", ""),
        tuple(given.get("enum", ())),
        bounds,
    )


def _kind(given: Mapping[str, Any]) -> Kind:
    if "enum" in given:
        return "choice"
    kinds: dict[str, Kind] = {
        "integer": "integer",
        "number": "number",
        "boolean": "boolean",
        "array": "json",
        "object": "json",
    }
    return kinds.get(given.get("type", ""), "text")


def _text(default: Any) -> str:
    """A default as it would be typed; nothing for null."""
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, str):
        return default
    return "" if default is None else json.dumps(default)
