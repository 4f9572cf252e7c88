"""Pydantic's validation errors in terms of the request: its field paths, its values, what is allowed."""

import inspect
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypedDict, get_args, get_type_hints

from pydantic import BaseModel

MOST_ERRORS = 50
MAX_CHARACTERS = 200
STORABLE = r"^[^\x00]*$"
"""Pattern of strings that every database can store: PostgreSQL cannot store U+0000."""


class FieldError(TypedDict):
    """One error: the field's path in the request, its value, and what is allowed."""

    field: str
    value: Any
    message: str


def field_errors(errors: Iterable[Any], root: type[BaseModel] | None) -> list[FieldError]:
    """Convert Pydantic's errors; those whose path starts with "body" are about a body of the model ``root``."""
    return [_field_error(error, root) for error in list(errors)[:MOST_ERRORS]]


def shown(value: Any) -> Any:
    """``value`` itself if it is short JSON, else a shortened form or a description."""
    if isinstance(value, str):
        short = len(value) <= MAX_CHARACTERS
        return value if short else f"{value[:MAX_CHARACTERS]}... ({len(value)} characters)"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if abs(value) < 10**MAX_CHARACTERS else "an integer with too many digits"
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return f"a {type(value).__name__}"
    return value if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}..."


def members(annotation: Any) -> list[type[BaseModel]]:
    """The models in an annotation: itself, or those inside a union, tuple or ``Annotated``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in members(part)]


def name_of(model: type[BaseModel]) -> str | None:
    """The value of the discriminator, which is the default of ``name``."""
    field = model.model_fields.get("name")
    return field.default if field is not None else None


def _field_error(error: Any, root: type[BaseModel] | None) -> FieldError:
    where, *path = error["loc"]
    model = root
    if where == "body":
        path, model = _walk(path, root)
    kind, context = error["type"], error.get("ctx", {})
    message, value = error["msg"].removeprefix("Value error, "), shown(error.get("input"))
    if kind == "missing":
        message, value = "this field is required", None
    elif kind == "extra_forbidden" and model is not None:
        message = f"unknown field; allowed: {', '.join(model.model_fields)}"
    elif kind == "union_tag_invalid":
        path, value = [*path, "name"], shown(context["tag"])
        message = f"unknown name; allowed: {context['expected_tags']}"
    elif kind == "union_tag_not_found":
        path, value = [*path, "name"], None
        message = "this field is required; it selects the type"
    elif kind == "literal_error":
        message = f"allowed: {context['expected']}"
    elif kind in ("model_attributes_type", "model_type"):
        message = "allowed: a JSON object"
    field = _dotted(path) or where
    return FieldError(field=field, value=value, message=message)


def _walk(
    path: Sequence[str | int], root: type[BaseModel] | None
) -> tuple[list[str | int], type[BaseModel] | None]:
    """The path without union tags, and the model that has its last part as a field."""
    kept: list[str | int] = []
    here: list[type[BaseModel]] = [root] if root else []
    model = root
    for part in path:
        tagged = [m for m in here if name_of(m) == part] if len(here) > 1 else []
        if tagged:
            here = tagged
            continue
        kept.append(part)
        if isinstance(part, int) or len(here) != 1:
            continue
        model = here[0]
        field = model.model_fields.get(part)
        here = members(field.annotation) if field is not None else []
    return kept, model


def _dotted(path: Sequence[str | int]) -> str:
    """``["defenses", 0, "gamma"]`` as ``defenses[0].gamma``."""
    return "".join(_parts(path)).lstrip(".")


def _parts(path: Sequence[str | int]) -> Iterator[str]:
    for part in path:
        yield f"[{part}]" if isinstance(part, int) else f".{shown(part)}"


def body_model(endpoint: Callable[..., Any] | None) -> type[BaseModel] | None:
    """The model of an endpoint's body, from its signature."""
    if endpoint is None:
        return None
    hints = get_type_hints(endpoint)
    parameters = inspect.signature(endpoint).parameters
    models = (hints[name] for name in parameters if isinstance(hints.get(name), type))
    return next((m for m in models if issubclass(m, BaseModel)), None)
