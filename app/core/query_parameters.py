"""Query parameters: unknown ones are errors on every route of the API, like unknown fields of a body; `fields` selects
parts of a response."""

from collections.abc import Collection
from difflib import get_close_matches

from fastapi import Request
from pydantic import BaseModel

from app.core.errors import InvalidError
from app.core.validation import FieldError, shown


async def reject_unknown_parameters(request: Request) -> None:
    """A dependency of the routers. Raises InvalidError for query parameters that the route does not declare."""
    names = [parameter.alias for parameter in request.scope["route"].dependant.query_params]
    errors = []
    for name in sorted(set(request.query_params) - set(names)):
        close = get_close_matches(name, names, 1)
        hint = f"; did you mean {close[0]}" if close else ""
        message = f"unknown parameter{hint}; allowed: {', '.join(names) or 'none'}"
        errors.append(FieldError(field=shown(name), value=shown(request.query_params[name]), message=message))
    if errors:
        raise InvalidError.of_all(errors)


def parse_fields(text: str | None, model: type[BaseModel], default: Collection[str]) -> Collection[str]:
    """The fields of ``model`` that the parameter ``fields`` selects: names with commas between them, or ``*`` for all.

    Without the parameter, ``default``. Raises InvalidError for the names that are not fields.
    """
    if text is None:
        return default
    names = {name.strip() for name in text.split(",")}
    allowed = {"*": None, **model.model_fields}
    if unknown := sorted(names - allowed.keys()):
        message = f"unknown field; allowed: {', '.join(allowed)}"
        raise InvalidError.of_all(
            [FieldError(field="fields", value=shown(name), message=message) for name in unknown]
        )
    return model.model_fields.keys() if "*" in names else names
