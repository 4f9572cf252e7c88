"""The fields of a form, from the JSON schema that the catalog has for a part of a spec."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from app.data.catalog.schemas import Entry

Kind = Literal["integer", "number", "boolean", "choice", "json", "text"]
KINDS: dict[str, Kind] = {
    "integer": "integer",
    "number": "number",
    "boolean": "boolean",
    "array": "json",
    "object": "json",
}
RANGE = (
    ("minimum", "at least"),
    ("exclusiveMinimum", "more than"),
    ("maximum", "at most"),
    ("exclusiveMaximum", "less than"),
)


class FormField(NamedTuple):
    """One hyperparameter. ``name`` is its dotted path within the part; an empty ``value`` means the default."""

    name: str
    kind: Kind
    default: str
    value: str
    hint: str
    source: str
    choices: tuple[str, ...]
    bounds: dict[str, Any]


def form_fields(entry: Entry, values: Mapping[str, Any] | None = None) -> list[FormField]:
    """Every field of a catalog entry except its name and key, including nested ones.

    ``values`` are those of the spec that the form starts from; default: the defaults.
    """
    schema = entry.schema_
    return list(_fields(schema, entry.defaults, values or {}, schema.get("$defs", {}), ""))


def _fields(
    schema: Mapping[str, Any],
    defaults: Mapping[str, Any],
    values: Mapping[str, Any],
    definitions: Mapping[str, Any],
    prefix: str,
) -> Iterator[FormField]:
    for name, field in schema["properties"].items():
        if name in ("name", "key"):
            continue
        default = defaults.get(name)
        value = values.get(name, default)
        if "$ref" in field:
            nested = definitions[field["$ref"].rpartition("/")[2]]
            yield from _fields(nested, default or {}, value or {}, definitions, f"{prefix}{name}.")
            continue
        # The schema of a field that may be null has its constraints in `anyOf`.
        constraints: Mapping[str, Any] = next(
            (s for s in field.get("anyOf", ()) if s.get("type") != "null"), {}
        )
        merged = {**field, **constraints, "description": field.get("description", "")}
        yield _form_field(prefix + name, merged, default, value)


def _form_field(name: str, schema: Mapping[str, Any], default: Any, value: Any) -> FormField:
    kind = _kind(schema)
    bounds = {}
    if kind in ("integer", "number"):
        bounds = {"step": 1 if kind == "integer" else "any"}
        bounds |= {
            name: schema[key] for key, name in (("minimum", "min"), ("maximum", "max")) if key in schema
        }
    limits = " and ".join(f"{word} {schema[key]:g}" for key, word in RANGE if key in schema)
    allowed = f"{limits} {schema.get('unit', '')}".strip()
    hint = " ".join(part for part in (schema["description"], f"({allowed})" if allowed else "") if part)
    return FormField(
        name,
        kind,
        _text(default),
        "" if value == default else _text(value),
        hint,
        schema.get("source", ""),
        tuple(schema.get("enum", ())),
        bounds,
    )


def _kind(schema: Mapping[str, Any]) -> Kind:
    if "enum" in schema:
        return "choice"
    return KINDS.get(schema.get("type", ""), "text")


def _text(value: Any) -> str:
    """A value as a user would type it; empty for null."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value)
