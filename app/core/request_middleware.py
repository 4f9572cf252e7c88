"""The outermost middleware: request id, trace, body limits, timing, access log, and a handler for unexpected errors.

A body is read only for a sender with a valid key. A request without one goes on without its body, and is refused where
all such requests are (`app.team.access`).
"""

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, clear_contextvars

from app.core import metrics, tracing
from app.core.errors import (
    AppError,
    BadRequestError,
    StalledError,
    TooLargeError,
    TooManyError,
    UnavailableError,
    problem,
)
from app.core.security import SAFE_METHODS

log = logging.getLogger(__name__)
HEADER = "X-Request-ID"
DEFAULT_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
"""Headers of every response whose route does not set them: it is what it says, and only for whoever asked."""
FORM_OVERHEAD = 64 * 1024
SMALL_BODY_BYTES = 64 * 1024
BODIES_PER_OWNER, OWNERS = 4, 8
"""How many of the largest bodies of an owner are held at once, and those of how many owners."""
MAX_BODY_SECONDS = 60.0
SLOW_SECONDS = 2.0
MAX_LOGGED_PATH = 300
UNTRACED = ("/healthz", "/readyz", "/metrics", "/static")
"""Paths that are polled by machines; they are neither traced nor, unless they fail, logged."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

Recognize = Callable[[Scope], Awaitable[str | None]]
"""Returns the id of the owner whose valid key a request has; None if it has none."""


class RequestMiddleware:
    """Plain ASGI, so that streams pass through it unbuffered."""

    def __init__(
        self,
        app: ASGIApp,
        max_body: int,
        max_form: int,
        max_values: int,
        recognize: Recognize,
        large: re.Pattern[str],
        pictures: re.Pattern[str],
        streamed: frozenset[str] = frozenset(),
    ) -> None:
        """``max_body`` is the limit in bytes of bodies to the paths ``large``, which may contain up to ``max_values``
        values, and ``max_form`` that of multipart bodies to the paths ``pictures``. All others are small.

        Bodies of POST requests to the paths in ``streamed`` are passed on unread; those routes have their own limits.
        """
        self.app = app
        self.max_body = max_body
        self.max_form = max_form + FORM_OVERHEAD
        self.max_values = max_values
        self.recognize = recognize
        self.large, self.pictures, self.streamed = large, pictures, streamed
        self.held = Counter[str]()
        """Bytes of the bodies of requests in flight, by owner."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        requested = headers.get(HEADER, "")
        request_id = scope["request_id"] = requested if _REQUEST_ID.fullmatch(requested) else uuid4().hex
        clear_contextvars()  # a pipelined request starts in the context of the one before it
        bind_contextvars(request_id=request_id)
        if scope["path"].startswith(UNTRACED):
            await self._measured(scope, receive, send)
            return
        with tracing.span(scope["method"], kind="server", parent=headers.get("traceparent")) as span:
            bind_contextvars(trace_id=tracing.trace_id(tracing.traceparent()))
            status = await self._measured(scope, receive, send)
            route = _route(scope)
            span.update_name(f"{scope['method']} {route}")
            span.set_attribute("http.request.method", scope["method"])
            span.set_attribute("http.route", route)
            span.set_attribute("http.response.status_code", status)

    async def _measured(self, scope: Scope, receive: Receive, send: Send) -> int:
        """Answer, measure and log the request. Returns the status, 0 if no answer was started."""
        status, began = 0, time.perf_counter()
        unread = _has_body(Headers(scope=scope))

        async def receive_body() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message.get("more_body", False)
            return message

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[HEADER] = scope["request_id"]
                for name, value in DEFAULT_HEADERS.items():
                    headers.setdefault(name, value)
                if unread:  # the connection cannot carry another request
                    headers["Connection"] = "close"
            await send(message)

        try:
            await self._answer(scope, receive_body, send_with_headers)
        except Exception:
            log.exception("request %s failed: %s %s", scope["request_id"], scope["method"], scope["path"])
            if status:
                raise  # the answer has started: let the server close the connection
            detail = "internal error; the service's log has the details under this request_id"
            await problem(scope["request_id"], 500, detail, kind="internal")(
                scope, receive, send_with_headers
            )
        finally:
            seconds = time.perf_counter() - began
            metrics.REQUEST_SECONDS.labels(scope["method"], _route(scope), str(status)).observe(seconds)
            _log_request(scope, status, seconds)
        return status

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on if its URL and its body are acceptable; otherwise refuse it."""
        owner_id, size = "", 0
        try:
            if "\0" in scope["path"] or b"%00" in scope["query_string"]:
                raise BadRequestError("URLs must not contain U+0000")
            headers = Headers(scope=scope)
            is_streamed = scope["method"] == "POST" and scope["path"] in self.streamed
            if _has_body(headers) and not is_streamed:
                owner_id = await self.recognize(scope) or ""
                if owner_id:
                    size = self._hold(owner_id, headers, self._limit(scope["path"], headers))
                    receive = await self._read_body(headers, receive, size)
                else:
                    receive = _replayed(b"", False, receive)
            await self.app(scope, receive, send)
        except (BadRequestError, StalledError, TooLargeError, TooManyError, UnavailableError) as error:
            await _refusal(scope, error)(scope, receive, send)
        finally:
            self.held[owner_id] -= size
            if not self.held[owner_id]:
                del self.held[owner_id]

    def _limit(self, path: str, headers: Headers) -> int:
        """The largest body in bytes that the path accepts."""
        if self.pictures.fullmatch(path) and _is_form(headers):
            return self.max_form
        return self.max_body if self.large.fullmatch(path) else min(SMALL_BODY_BYTES, self.max_body)

    def _hold(self, owner_id: str, headers: Headers, limit: int) -> int:
        """Count the bytes that the body will take, which is the limit if it does not say, and return them."""
        length = headers.get("content-length", "")
        size = int(length) if length.isdigit() and len(length) < 20 else limit
        if size > limit:
            raise _too_large(limit)
        per_owner = BODIES_PER_OWNER * max(self.max_body, self.max_form)
        if self.held[owner_id] + size > per_owner:
            message = f"the limit is {per_owner} bytes of requests in flight; wait for one of them to end"
            raise TooManyError(message, retry_after=1)
        if self.held.total() + size > OWNERS * per_owner:
            raise UnavailableError("too many large requests are in flight", retry_after=1)
        self.held[owner_id] += size
        return size

    async def _read_body(self, headers: Headers, receive: Receive, limit: int) -> Receive:
        """Read the whole body, which is small, up to the limit. Returns a ``receive`` that replays it."""
        try:
            async with asyncio.timeout(MAX_BODY_SECONDS):
                body, more = await _receive_all(receive, limit)
        except TimeoutError as error:
            raise StalledError(f"the body did not arrive within {MAX_BODY_SECONDS:g} s") from error
        # Each invalid value costs about a kilobyte of error report, a value only two bytes of body. All but the first
        # element of every JSON array and object follow a comma, so counting commas bounds the values without parsing.
        if not _is_form(headers) and body.count(b",") > self.max_values:
            raise TooLargeError(f"the body has too many values; at most {self.max_values} are allowed")
        return _replayed(body, more, receive)


def _has_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _is_form(headers: Headers) -> bool:
    return headers.get("content-type", "").startswith("multipart/form-data")


def _replayed(body: bytes, more: bool, receive: Receive) -> Receive:
    """A ``receive`` that returns ``body`` first, then what comes after it: the end of the connection."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": more}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


def _refusal(scope: Scope, error: AppError) -> ASGIApp:
    return problem(scope["request_id"], error.status, error.detail, kind=error.kind, headers=error.headers)


async def _receive_all(receive: Receive, limit: int) -> tuple[bytes, bool]:
    """The body, and True if the client disconnected before its end. Raises TooLargeError."""
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        parts.append(message.get("body", b""))
        size, more = size + len(parts[-1]), message.get("more_body", False)
        if size > limit:
            raise _too_large(limit)
    return b"".join(parts), more


def _route(scope: Scope) -> str:
    """The path template, so that ids do not multiply the metrics' series."""
    return str(getattr(scope.get("route"), "path", "unmatched"))


def _log_request(scope: Scope, status: int, seconds: float) -> None:
    """Log what changed something, failed, or was slow. Reads are only counted: pollers would drown the rest."""
    failed, path, route = status >= 400 or status == 0, scope["path"], _route(scope)
    if path.startswith(UNTRACED):
        logged = status == 500
    elif route.endswith("/events"):  # a stream is meant to last
        logged = failed
    else:
        logged = failed or scope["method"] not in SAFE_METHODS or seconds > SLOW_SECONDS
    if logged:
        details = {"route": route, "status": status, "seconds": round(seconds, 4)}
        log.info("%s %s", scope["method"], path[:MAX_LOGGED_PATH], extra=details)


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"the body is too large; at most {limit} bytes are allowed")
