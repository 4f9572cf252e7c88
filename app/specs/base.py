"""The base class of specs, documented fields, canonical JSON and hashing."""

import hashlib
import json
from typing import Annotated, Any, ClassVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field


class Spec(BaseModel):
    """Base class of all specs: immutable; unknown fields are errors."""

    code: ClassVar[str] = ""
    """SHA-256 of the plug-in file that defines the class; empty for built-in classes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    def fields_with(self, *prefixes: str) -> dict[str, Any]:
        """The fields whose names start with one of ``prefixes``, as JSON."""
        return {n: v for n, v in self.model_dump(mode="json").items() if n.startswith(prefixes)}


def field(default: Any, description: str, *, unit: str = "", source: str = "", **bounds: Any) -> Any:
    """A documented hyperparameter.

    ``unit`` is what the number counts ("epochs", "fraction", "gray levels"); ``source`` is where the default comes
    from. Both are in the JSON schema, and so in the catalog and the OpenAPI page. ``bounds`` are pydantic's
    constraints (``ge``, ``le``, ``gt``, ``lt``, ``min_length``, ``pattern``, ...).
    """
    extra: dict[str, Any] = {key: text for key, text in (("unit", unit), ("source", source)) if text}
    return Field(default, description=description, json_schema_extra=extra or None, **bounds)


def canonical_json(value: Any) -> str:
    """The canonical JSON text of ``value``: sorted keys, no spaces, every default written out."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def member_names(union: Any) -> set[str]:
    """The names of the specs in a union, which may be annotated with its discriminator."""
    if get_origin(union) is Annotated:
        union = get_args(union)[0]
    return {cls.model_fields["name"].default for cls in get_args(union)}
