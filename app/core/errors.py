"""The one exception tree, and the one place where it becomes problem+json (RFC 9457)."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Self, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from app.core.broker import BrokerError
from app.core.objects import ObjectStoreError
from app.core.validation import FieldError, body_model, field_errors, shown

MEDIA_TYPE = "application/problem+json"
T = TypeVar("T")
OUTAGES = (OperationalError, ObjectStoreError, BrokerError)
"""What is raised where something that the service depends on does not answer."""


class AppError(Exception):
    """Base of everything that the API refuses on purpose. The message is the problem's ``detail``."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    kind = "internal"

    def __init__(self, detail: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = dict(headers or {})


class BadRequestError(AppError):
    """The request cannot be read: malformed JSON, a cursor that is none of ours."""

    status, kind = HTTPStatus.BAD_REQUEST, "bad-request"


class UnauthorizedError(AppError):
    """There is no API key with the request, or not one that is good."""

    status, kind = HTTPStatus.UNAUTHORIZED, "unauthorized"


class ForbiddenError(AppError):
    """The API key is good, but not for this; the message names the scope."""

    status, kind = HTTPStatus.FORBIDDEN, "forbidden"


class TooManyError(AppError):
    """A limit of the owner's is reached; the message says which."""

    status, kind = HTTPStatus.TOO_MANY_REQUESTS, "too-many"

    def __init__(self, detail: str, *, retry_after: int) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after)})


class NotFoundError(AppError):
    """There is no such thing."""

    status, kind = HTTPStatus.NOT_FOUND, "not-found"

    @classmethod
    def of(cls, what: str, name: str) -> Self:
        """The error for a missing ``what`` ("experiment") with this id or name."""
        return cls(f"there is no {what} {shown(name)}")


class GoneError(AppError):
    """The thing was there and is not any more; the message says why."""

    status, kind = HTTPStatus.GONE, "gone"


class ConflictError(AppError):
    """The thing's state does not allow it; the message says what would."""

    status, kind = HTTPStatus.CONFLICT, "conflict"


class TooLargeError(AppError):
    """The body or the image is larger than the settings allow."""

    status, kind = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-large"


class StalledError(AppError):
    """The body does not come, or comes too slowly."""

    status, kind = HTTPStatus.REQUEST_TIMEOUT, "stalled"


class MediaTypeError(AppError):
    """The body is of a type that this route does not read."""

    status, kind = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type"


class RangeError(AppError):
    """The range lies outside the file."""

    status, kind = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "range-not-satisfiable"


class InvalidError(AppError):
    """The request is readable but wrong; ``errors`` names each field, its value, and what is allowed."""

    status, kind = HTTPStatus.UNPROCESSABLE_ENTITY, "invalid"

    def __init__(self, detail: str, errors: list[FieldError] | None = None) -> None:
        super().__init__(detail)
        self.errors = errors or []

    @classmethod
    def of(cls, field: str, value: object, message: str) -> Self:
        """The error for one wrong field; ``message`` says what is allowed."""
        return cls.of_all([FieldError(field=field, value=shown(value), message=message)])

    @classmethod
    def of_all(cls, errors: list[FieldError]) -> Self:
        """The error for several wrong fields; the first one becomes the detail."""
        return cls(summary(errors), errors)


class UnavailableError(AppError):
    """Something that the service depends on does not answer; trying again later may help."""

    status, kind = HTTPStatus.SERVICE_UNAVAILABLE, "unavailable"

    def __init__(self, detail: str, *, retry_after: int = 5) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after)})


class WorkerFailedError(AppError):
    """An interactive worker took the request and broke on it."""

    status, kind = HTTPStatus.BAD_GATEWAY, "worker-failed"


def require(row: T | None, what: str, name: str) -> T:
    """``row``. Raises NotFoundError if it is None."""
    if row is None:
        raise NotFoundError.of(what, name)
    return row


def problem(
    request_id: str,
    status: int,
    detail: str,
    *,
    kind: str,
    headers: Mapping[str, str] | None = None,
    **more: Any,
) -> Response:
    """A problem+json answer."""
    body = {
        "type": f"urn:backdoor-lab:problem:{kind}",
        "title": HTTPStatus(status).phrase,
        "status": int(status),
        "detail": detail,
        "request_id": request_id,
        **more,
    }
    text = json.dumps(body)  # in ASCII: what a faulty request holds need not be valid Unicode
    return Response(text, status_code=status, media_type=MEDIA_TYPE, headers=dict(headers or {}))


def install(app: FastAPI) -> None:
    """Make ``app`` answer every error with a problem."""

    def of_ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, AppError)
        more = {"errors": error.errors} if isinstance(error, InvalidError) and error.errors else {}
        return _answer(request, error.status, error.detail, kind=error.kind, headers=error.headers, **more)

    def of_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            detail = f"the body is no JSON: {first['ctx']['error']} at character {first['loc'][-1]}"
            return _answer(request, 400, detail, kind=BadRequestError.kind)
        errors = field_errors(error.errors(), body_model(request.scope.get("endpoint")))
        return _answer(request, 422, summary(errors), kind=InvalidError.kind, errors=errors)

    def of_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail = {
            400: "the body cannot be read: too deeply nested, or a number with too many digits",
            404: f"there is no {request.url.path}",
            405: f"{request.method} is not allowed on {request.url.path}",
        }.get(error.status_code, str(error.detail))
        kind = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_methods(request))
        return _answer(request, error.status_code, detail, kind=kind, headers=headers)

    def of_others(request: Request, error: Exception) -> Response:
        detail = str(error).partition("\n")[0]
        return of_ours(request, UnavailableError(detail))

    app.add_exception_handler(AppError, of_ours)
    for outage in OUTAGES:
        app.add_exception_handler(outage, of_others)
    app.add_exception_handler(RequestValidationError, of_validation)
    app.add_exception_handler(HTTPException, of_http)


def _methods(request: Request) -> list[str]:
    """Every method of the requested path; the router knows only those of the first route that fits."""
    path: str = getattr(request.scope.get("route"), "path", "")
    return sorted(method.upper() for method in request.app.openapi()["paths"].get(path, {}))


def summary(errors: list[FieldError]) -> str:
    """One line for people: the first error, and how many more there are."""
    first = errors[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{first['field']}: {first['message']}{more}"


def _answer(request: Request, status: int, detail: str, **more: Any) -> Response:
    return problem(request.scope["request_id"], status, detail, **more)
