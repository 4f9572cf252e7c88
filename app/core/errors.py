"""The exceptions that the API maps to responses, and the handlers that make them problem+json (RFC 9457)."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Self, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.core.broker import BrokerError
from app.core.objects import DamagedObjectError, ObjectStoreError
from app.core.validation import FieldError, body_model, field_errors, shown
from app.specs.printable import printable

MEDIA_TYPE = "application/problem+json"
T = TypeVar("T")
FAULTS = (OperationalError, ObjectStoreError, BrokerError, DamagedObjectError)
"""Raised when a service that this one depends on does not answer, or what it answers is damaged."""


class AppError(Exception):
    """Base of all errors that the API reports to the client. The message becomes the problem's ``detail``."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    kind = "internal"

    def __init__(self, detail: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = dict(headers or {})


class BadRequestError(AppError):
    """The request cannot be parsed: malformed JSON, an invalid cursor."""

    status, kind = HTTPStatus.BAD_REQUEST, "bad-request"


class UnauthorizedError(AppError):
    """The API key is missing or not valid."""

    status, kind = HTTPStatus.UNAUTHORIZED, "unauthorized"


class ForbiddenError(AppError):
    """The API key lacks a scope, which the message names."""

    status, kind = HTTPStatus.FORBIDDEN, "forbidden"


class TooManyError(AppError):
    """The owner has reached a limit, which the message names."""

    status, kind = HTTPStatus.TOO_MANY_REQUESTS, "too-many"

    def __init__(self, detail: str, *, retry_after: int) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after)})


class NotFoundError(AppError):
    """The resource does not exist."""

    status, kind = HTTPStatus.NOT_FOUND, "not-found"

    @classmethod
    def of(cls, what: str, name: str) -> Self:
        """The error for a missing ``what`` ("experiment") with this id or name."""
        return cls(f"there is no {what} {shown(name)}")


class GoneError(AppError):
    """The resource was deleted; the message says why."""

    status, kind = HTTPStatus.GONE, "gone"


class ConflictError(AppError):
    """The resource's state does not allow the operation; the message says which state would."""

    status, kind = HTTPStatus.CONFLICT, "conflict"


class TooLargeError(AppError):
    """The body is larger than the settings allow."""

    status, kind = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-large"


class StalledError(AppError):
    """The body did not arrive in time."""

    status, kind = HTTPStatus.REQUEST_TIMEOUT, "stalled"


class MediaTypeError(AppError):
    """The route does not accept the body's media type."""

    status, kind = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type"


class RangeError(AppError):
    """The range is outside the file."""

    status, kind = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "range-not-satisfiable"


class InvalidError(AppError):
    """The request is well-formed but not valid; ``errors`` lists each field, its value, and what is allowed."""

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
    """A service that this one depends on does not answer; a retry may succeed."""

    status, kind = HTTPStatus.SERVICE_UNAVAILABLE, "unavailable"

    def __init__(self, detail: str, *, retry_after: int = 5) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after)})


class DamagedError(AppError):
    """Stored bytes are not those that were written; the message names them and says how to get them back."""

    kind = "damaged"


class WorkerFailedError(AppError):
    """The interactive worker failed on the request."""

    status, kind = HTTPStatus.BAD_GATEWAY, "worker-failed"


def require(row: T | None, what: str, name: str) -> T:
    """``row``. Raises NotFoundError if it is None."""
    if row is None:
        raise NotFoundError.of(what, name)
    return row


def as_app_error(error: Exception) -> AppError:
    """An error of `FAULTS` as the API reports it; an AppError stays itself."""
    if isinstance(error, AppError):
        return error
    detail = str(error).partition("\n")[0]
    return DamagedError(detail) if isinstance(error, DamagedObjectError) else UnavailableError(detail)


def problem(
    request_id: str,
    status: int,
    detail: str,
    *,
    kind: str,
    headers: Mapping[str, str] | None = None,
    **more: Any,
) -> Response:
    """A problem+json response."""
    body = {
        "type": f"urn:backdoor-lab:problem:{kind}",
        "title": HTTPStatus(status).phrase,
        "status": int(status),
        "detail": printable(detail),
        "request_id": request_id,
        **more,
    }
    text = json.dumps(body)  # ASCII: it may quote parts of the request that are not valid Unicode
    return Response(text, status_code=status, media_type=MEDIA_TYPE, headers=dict(headers or {}))


def install(app: FastAPI) -> None:
    """Register handlers that answer every error of ``app`` with a problem."""

    def answer_app_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, AppError)
        more = {"errors": error.errors} if isinstance(error, InvalidError) and error.errors else {}
        return _answer(request, error.status, error.detail, kind=error.kind, headers=error.headers, **more)

    def answer_validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            detail = f"the body is not valid JSON: {first['ctx']['error']} at character {first['loc'][-1]}"
            return _answer(request, 400, detail, kind=BadRequestError.kind)
        errors = field_errors(error.errors(), body_model(request.scope.get("endpoint")))
        return _answer(request, 422, summary(errors), kind=InvalidError.kind, errors=errors)

    def answer_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail = {
            400: "the body cannot be parsed: it is not UTF-8, nested too deeply, or has a number with too many digits",
            404: f"there is no {request.url.path}",
            405: f"{request.method} is not allowed on {request.url.path}",
        }.get(error.status_code, str(error.detail))
        kind = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_allowed_methods(request))
        return _answer(request, error.status_code, detail, kind=kind, headers=headers)

    def answer_fault(request: Request, error: Exception) -> Response:
        return answer_app_error(request, as_app_error(error))

    def answer_disconnect(request: Request, _error: Exception) -> Response:
        """Nobody reads this answer, but the log and the audit log have its status."""
        detail = "the client closed the connection before the body was complete"
        return answer_app_error(request, BadRequestError(detail))

    app.add_exception_handler(AppError, answer_app_error)
    app.add_exception_handler(ClientDisconnect, answer_disconnect)
    for fault in FAULTS:
        app.add_exception_handler(fault, answer_fault)
    app.add_exception_handler(RequestValidationError, answer_validation_error)
    app.add_exception_handler(HTTPException, answer_http_error)


def _allowed_methods(request: Request) -> list[str]:
    """All methods of the requested path. Starlette's own answer has only those of the first route with this path."""
    path: str | None = getattr(request.scope.get("route"), "path", None)
    routes = (route for route in iter_route_contexts(request.app.routes) if route.path == path)
    return sorted({method for route in routes for method in route.methods or ()})


def summary(errors: list[FieldError]) -> str:
    """One line for people: the first error and the number of others."""
    first = errors[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{first['field']}: {first['message']}{more}"


def _answer(request: Request, status: int, detail: str, **more: Any) -> Response:
    return problem(request.scope["request_id"], status, detail, **more)
