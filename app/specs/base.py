"""What every specification model shares: strictness, documented fields, canonical JSON, hashing."""

import hashlib
import json
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field


class Spec(BaseModel):
    """Base of all specification models: immutable, and an unknown field is an error."""

    code: ClassVar[str] = ""
    """SHA-256 of the plug-in file that defines the class; empty for what this repository defines."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


def field(default: Any, description: str, *, unit: str = "", source: str = "", **bounds: Any) -> Any:
    """A documented hyper-parameter.

    ``unit`` is what the number counts ("epochs", "fraction", "gray levels"), ``source`` where the
    default comes from; both end up in the JSON schema, and so in the catalog and the OpenAPI page.
    ``bounds`` are pydantic's own (``ge``, ``le``, ``gt``, ``lt``, ``min_length``, ``pattern`` ...).
    """
    extra: dict[str, Any] = {key: text for key, text in (("unit", unit), ("source", source)) if text}
    return Field(default, description=description, json_schema_extra=extra or None, **bounds)


def canonical_json(value: Any) -> str:
    """The one JSON text of ``value``: sorted keys, no spaces, every default written out."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
