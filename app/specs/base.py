"""The base classes of specs, documented fields, presets, canonical JSON and hashing."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

NUMBERS = {"int": "an integer", "float": "a number"}


def _refuser(kind: str) -> Callable[[Any], Any]:
    def refuse_boolean(value: Any) -> Any:
        if isinstance(value, bool):
            raise PydanticCustomError(f"{kind}_type", f"Input should be {NUMBERS[kind]}, not a boolean")
        return value

    return refuse_boolean


_REFUSERS = {kind: _refuser(kind) for kind in NUMBERS}


def _without_booleans(schema: Any) -> Any:
    """Pydantic's schema with every number in it, at any depth, refusing true and false, which Python takes for 1 and 0.

    Pydantic's own strictness would also refuse numbers in form fields, and lists where the spec has tuples.
    """
    if isinstance(schema, list):
        return [_without_booleans(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    if kind in NUMBERS:
        return core_schema.no_info_before_validator_function(_REFUSERS[kind], schema)
    if kind == "function-before" and schema["function"]["function"] in _REFUSERS.values():
        return schema  # of a model inside this one
    if kind == "union":  # errors name a choice by its label
        choices = [part if isinstance(part, tuple) else (part, part["type"]) for part in schema["choices"]]
        return {**schema, "choices": [(_without_booleans(part), label) for part, label in choices]}
    values = ("default", "metadata", "serialization")
    return {name: part if name in values else _without_booleans(part) for name, part in schema.items()}


class Input(BaseModel):
    """Base class of what clients send: unknown fields are errors, and a boolean is not a number."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema: CoreSchema = _without_booleans(handler(source))
        return schema


class Spec(Input):
    """Base class of all specs: immutable."""

    code: ClassVar[str] = ""
    """SHA-256 of the plug-in file that defines the class; empty for built-in classes."""

    model_config = ConfigDict(frozen=True, validate_default=True)

    def fields_with(self, *prefixes: str) -> dict[str, Any]:
        """The fields whose names start with one of ``prefixes``, as JSON."""
        return {n: v for n, v in self.model_dump(mode="json").items() if n.startswith(prefixes)}


class Preset(NamedTuple):
    """A setting of a method that a source publishes, or that this project recommends."""

    summary: str
    """Whose setting it is, and why to choose it."""
    source: str
    values: Mapping[str, Any]
    """The fields that differ from the defaults of the class. Empty for the default preset."""


class PresetSpec(Spec):
    """Base class of specs with presets.

    A subclass defines ``presets`` and a field ``preset`` made by `preset_field`. The preset sets every field that is
    omitted; a field that is given takes precedence. The canonical spec shows the resulting values.
    """

    presets: ClassVar[dict[str, Preset]] = {}

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or not isinstance(name := fields.get("preset"), str):
            return fields
        preset = cls.presets.get(name)  # an unknown name is reported by the field itself
        return fields if preset is None else {**preset.values, **fields}


def field(
    default: Any,
    description: str,
    *,
    unit: str = "",
    source: str = "",
    added_later: bool = False,
    **bounds: Any,
) -> Any:
    """A documented hyperparameter.

    ``unit`` is what the number counts ("epochs", "fraction", "gray levels"); ``source`` is where the default comes
    from. Both are in the JSON schema, and so in the catalog and the OpenAPI page. ``added_later`` leaves the default
    out of JSON, so that specs from before the field keep their canonical form and hash. ``bounds`` are pydantic's
    constraints (``ge``, ``le``, ``gt``, ``lt``, ``min_length``, ``pattern``, ...).
    """
    extra: dict[str, Any] = {key: text for key, text in (("unit", unit), ("source", source)) if text}
    exclude_if = (lambda value: value == default) if added_later else None
    return Field(
        default, description=description, json_schema_extra=extra or None, exclude_if=exclude_if, **bounds
    )


def preset_field(presets: dict[str, Preset], default: str) -> Any:
    """The field ``preset`` of a `PresetSpec`; its values are the names of ``presets``."""
    summaries = " ".join(f"{name}: {preset.summary}" for name, preset in presets.items())
    return field(
        default,
        f"Settings that fill the fields that are omitted. {summaries}",
        source="; ".join(dict.fromkeys(preset.source for preset in presets.values())),
    )


def canonical_json(value: Any) -> str:
    """The canonical JSON text of ``value``: sorted keys, no spaces, every default written out."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def specs_by_name(union: Any) -> dict[str, type[Spec]]:
    """The specs in a union, which may be annotated with its discriminator, by name."""
    if get_origin(union) is Annotated:
        union = get_args(union)[0]
    return {cls.model_fields["name"].default: cls for cls in get_args(union)}


def member_names(union: Any) -> set[str]:
    """The names of the specs in a union, as in `specs_by_name`."""
    return set(specs_by_name(union))
