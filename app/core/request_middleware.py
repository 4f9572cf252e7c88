"""The outermost middleware: request id, trace, body limits, timing, access log, and a handler for unexpected errors."""

import asyncio
import logging
import re
import time
from collections.abc import Callable
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, clear_contextvars

from app.core import tracing
from app.core.errors import BadRequestError, StalledError, TooLargeError, problem
from app.core.security import SAFE_METHODS

log = logging.getLogger(__name__)
HEADER = "X-Request-ID"
DEFAULT_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
"""Headers of every response whose route does not set them: it is what it says, and only for whoever asked."""
FORM_OVERHEAD = 64 * 1024
MAX_BODY_SECONDS = 60.0
SLOW_SECONDS = 2.0
MAX_LOGGED_PATH = 300
UNTRACED = ("/healthz", "/readyz", "/metrics", "/static")
"""Paths that are polled by machines; they are neither traced nor, unless they fail, logged."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

Observe = Callable[[str, str, int, float], None]
"""Called after each request with method, route template, status, and seconds."""


class RequestMiddleware:
    """Plain ASGI, so that streams pass through it unbuffered."""

    def __init__(
        self,
        app: ASGIApp,
        max_body: int,
        max_form: int,
        max_values: int,
        observe: Observe,
        streamed: frozenset[str] = frozenset(),
    ) -> None:
        """``max_form`` is the limit in bytes of multipart bodies, which carry an image; ``max_body`` is that of all
        others, which may contain up to ``max_values`` values.

        Bodies of POST requests to the paths in ``streamed`` are passed on unread; those routes have their own limits.
        """
        self.app = app
        self.max_body = max_body
        self.max_form = max_form + FORM_OVERHEAD
        self.max_values = max_values
        self.observe = observe
        self.streamed = streamed

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

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                sent = MutableHeaders(scope=message)
                sent[HEADER] = scope["request_id"]
                for name, value in DEFAULT_HEADERS.items():
                    sent.setdefault(name, value)
            await send(message)

        try:
            await self._answer(scope, receive, send_with_id)
        except Exception:
            log.exception("request %s failed: %s %s", scope["request_id"], scope["method"], scope["path"])
            if status:
                raise  # the answer has started: let the server close the connection
            detail = "internal error; the service's log has the details under this request_id"
            await problem(scope["request_id"], 500, detail, kind="internal")(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - began
            self.observe(scope["method"], _route(scope), status, seconds)
            _log_request(scope, status, seconds)
        return status

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on if its URL and its body are acceptable; otherwise refuse it."""
        try:
            if "\0" in scope["path"] or b"%00" in scope["query_string"]:
                raise BadRequestError("URLs must not contain U+0000")
            if scope["method"] != "POST" or scope["path"] not in self.streamed:
                receive = await self._read_body(Headers(scope=scope), receive)
            await self.app(scope, receive, send)
        except (BadRequestError, StalledError, TooLargeError) as error:
            # Part of the body may be unread, so the connection cannot carry another request.
            refusal = problem(
                scope["request_id"],
                error.status,
                error.detail,
                kind=error.kind,
                headers={"Connection": "close"},
            )
            await refusal(scope, receive, send)

    async def _read_body(self, headers: Headers, receive: Receive) -> Receive:
        """Read the whole body, which is small, up to the limit. Returns a ``receive`` that replays it."""
        multipart = headers.get("content-type", "").startswith("multipart/form-data")
        limit = self.max_form if multipart else self.max_body
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            raise _too_large(limit)
        if not length and "transfer-encoding" not in headers:
            return receive
        try:
            async with asyncio.timeout(MAX_BODY_SECONDS):
                body, more = await _receive_all(receive, limit)
        except TimeoutError as error:
            raise StalledError(f"the body did not arrive within {MAX_BODY_SECONDS:g} s") from error
        # Each invalid value costs about a kilobyte of error report, a value only two bytes of body. All but the first
        # element of every JSON array and object follow a comma, so counting commas bounds the values without parsing.
        if not multipart and body.count(b",") > self.max_values:
            raise TooLargeError(f"the body has too many values; at most {self.max_values} are allowed")
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": more}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        return replay


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
