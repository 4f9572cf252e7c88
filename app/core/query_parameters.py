"""An unknown query parameter is an error, as an unknown field of a body is."""

from difflib import get_close_matches

from fastapi import Request

from app.core.errors import InvalidError, summary
from app.core.validation import FieldError, shown


async def only_known(request: Request) -> None:
    """A dependency of routes and routers: refuses query parameters that the route does not have."""
    names = [parameter.alias for parameter in request.scope["route"].dependant.query_params]
    faults = []
    for name in sorted(set(request.query_params) - set(names)):
        close = get_close_matches(name, names, 1)
        hint = f"; did you mean {close[0]}" if close else ""
        message = f"unknown parameter{hint}; allowed: {', '.join(names) or 'none'}"
        faults.append(FieldError(field=shown(name), value=shown(request.query_params[name]), message=message))
    if faults:
        raise InvalidError(summary(faults), faults)
