"""Unknown query parameters are errors on every route of the API, like unknown fields of a body."""

from difflib import get_close_matches

from fastapi import Request

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
