"""How the API documents itself: the problems that a route can answer, and worked examples."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import BaseModel, Field
from starlette.routing import BaseRoute

from app.core.errors import MEDIA_TYPE
from app.core.security import SCOPES, scope_of


class FieldFault(BaseModel):
    """One error in a request."""

    field: str = Field(description="Path of the field in the request.")
    value: Any = Field(description="The value in the request.")
    message: str = Field(description="What is wrong, or what is allowed.")


class Problem(BaseModel):
    """RFC 9457."""

    type: str = Field(examples=["urn:backdoor-lab:problem:not-found"])
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(description="One line for people.")
    request_id: str = Field(description="Also in the header X-Request-ID and in the service's log.")
    errors: list[FieldFault] = Field([], description="With status 422: each invalid field.")


PREFIX = "/v1/"
WHEN = {
    400: "The request cannot be parsed.",
    401: "The API key is missing or not valid.",
    403: "The API key lacks the scope, which the detail names.",
    404: "The resource does not exist.",
    408: "The body did not arrive in time.",
    409: "The resource's state does not allow it; the detail says which state would.",
    410: "The file was deleted by the retention policy; the detail says when and why.",
    413: "The body is too large.",
    415: "The media type of the body is not supported.",
    416: "The range is outside the file.",
    422: "A field is not valid; `errors` lists each with what is allowed.",
    429: "The owner has reached a limit; retry after `Retry-After` seconds.",
    500: "A stored file is damaged; the detail says how to get it back.",
    502: "The interactive worker failed on the request.",
    503: "A back end does not answer; retry after `Retry-After` seconds.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` entries of a route for these error statuses."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {"description": f"{HTTPStatus(status).phrase}. {WHEN[status]}", "content": content}
        for status in statuses
    }


def add_problem_schema(document: dict[str, Any]) -> dict[str, Any]:
    """Add the schema that `problems` refers to, and remove FastAPI's own error schema."""
    schemas = document["components"]["schemas"]
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(schema.pop("$defs"))
    schemas["Problem"] = schema
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for path, operation in ((path, o) for path, item in document["paths"].items() for o in item.values()):
        # FastAPI adds its own to routes that do not declare a 422.
        if "application/json" in operation["responses"].get("422", {}).get("content", {}):
            del operation["responses"]["422"]
        if path.startswith(PREFIX):
            for status, response in problems(422).items():  # for an unknown query parameter
                operation["responses"].setdefault(str(status), response)
        if any(parameter["in"] in ("path", "query") for parameter in operation.get("parameters", ())):
            for status, response in problems(400).items():  # for a URL with U+0000
                operation["responses"].setdefault(str(status), response)
    return document


def add_security(document: dict[str, Any], routes: Iterable[BaseRoute]) -> dict[str, Any]:
    """Add to every operation the scope that its API key needs, and the error responses without it."""
    bearer = "An API key, created by `bdlab keys create`. Scopes: " + "; ".join(
        f"`{scope}`: {text}" for scope, text in SCOPES.items()
    )
    schemes = {"apiKey": {"type": "http", "scheme": "bearer", "description": bearer}}
    document["components"]["securitySchemes"] = schemes
    for route in iter_route_contexts(list(routes)):
        if not isinstance(route.original_route, APIRoute):
            continue
        for method in route.methods or ():
            operation = document["paths"].get(route.path_format, {}).get(method.lower())
            if operation is None:
                continue
            scope = scope_of(route.endpoint, method)
            operation["security"] = [{"apiKey": [scope]}] if scope else []
            if scope:
                operation["responses"] |= {str(k): v for k, v in problems(401, 403, 429).items()}
    return document
