"""What surrounds every request: an id, a span, a limit on the body, a measured time, and a last net for errors."""

import asyncio
import logging
import re
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core import log_context, tracing
from app.core.errors import BadRequestError, StalledError, TooLargeError, problem

log = logging.getLogger(__name__)
HEADER = "X-Request-ID"
FORM_OVERHEAD = 64 * 1024
LONGEST_BODY_SECONDS = 60.0
READING = ("GET", "HEAD", "OPTIONS")
SLOW_SECONDS = 2.0
LONGEST_PATH = 300
UNSEEN = ("/healthz", "/readyz", "/metrics", "/static")
"""Paths that machines ask for all day, of which no trace is made."""
_GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

Observe = Callable[[str, str, int, float], None]
"""Called after each request with method, route template, status, and seconds."""


class Surround:
    """The outermost middleware, in plain ASGI so that streams pass through it untouched."""

    def __init__(
        self,
        app: ASGIApp,
        max_body: int,
        max_form: int,
        max_values: int,
        observe: Observe,
        streamed: frozenset[str] = frozenset(),
    ) -> None:
        """``max_form`` is the limit for multipart bodies, which carry an image; ``max_body`` for all others, which may
        hold ``max_values`` values: what each fault of a body costs is far more than the byte that makes it.

        What is sent by POST to the paths in ``streamed`` goes to the route as it comes, which has limits of its own.
        """
        self.streamed = streamed
        self.app = app
        self.max_body = max_body
        self.max_form = max_form + FORM_OVERHEAD
        self.max_values = max_values
        self.observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(HEADER, "")
        request_id = scope["request_id"] = given if _GIVEN_ID.fullmatch(given) else uuid4().hex
        with log_context.binding(request_id=request_id):
            if scope["path"].startswith(UNSEEN):
                await self._answer(scope, receive, send, headers, request_id)
                return
            with tracing.span(scope["method"], kind="server", parent=headers.get("traceparent")) as span:
                log_context.bind(trace_id=tracing.trace_id(tracing.traceparent()))
                status = await self._answer(scope, receive, send, headers, request_id)
                route = _route(scope)
                span.update_name(f"{scope['method']} {route}")
                span.set_attribute("http.request.method", scope["method"])
                span.set_attribute("http.route", route)
                span.set_attribute("http.response.status_code", status)

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, headers: Headers, request_id: str
    ) -> int:
        """Have the request answered whatever happens; returns the status."""
        status, began = 0, time.perf_counter()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        try:
            if "\0" in scope["path"] or b"%00" in scope["query_string"]:
                raise BadRequestError("the URL holds the character U+0000, which nothing here is called by")
            streamed = scope["method"] == "POST" and scope["path"] in self.streamed
            body = receive if streamed else await self._body(headers, receive)
            await self.app(scope, body, sending)
        except (BadRequestError, StalledError, TooLargeError) as error:
            answer = problem(
                request_id, error.status, error.detail, kind=error.kind, headers={"Connection": "close"}
            )
            await answer(scope, receive, sending)
        except Exception:
            log.exception("request %s failed: %s %s", request_id, scope["method"], scope["path"])
            if status:
                raise  # too late for an answer: let the server cut the connection
            detail = "an internal error; the service's log has the details under this request_id"
            await problem(request_id, 500, detail, kind="internal")(scope, receive, sending)
        finally:
            seconds = time.perf_counter() - began
            self.observe(scope["method"], _route(scope), status, seconds)
            _tell(scope, status, seconds)
        return status

    async def _body(self, headers: Headers, receive: Receive) -> Receive:
        """The whole body, read up to the limit. Bodies are small, so routes never see half of one."""
        multipart = headers.get("content-type", "").startswith("multipart/form-data")
        limit = self.max_form if multipart else self.max_body
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            raise _too_large(limit)
        if not length and "transfer-encoding" not in headers:
            return receive
        try:
            async with asyncio.timeout(LONGEST_BODY_SECONDS):
                body, more = await _whole(receive, limit)
        except TimeoutError as error:
            raise StalledError(f"the body did not come within {LONGEST_BODY_SECONDS:g} s") from error
        if not multipart and body.count(b",") > self.max_values:
            raise TooLargeError(f"the body lists too many values; at most {self.max_values} are allowed")
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": more}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        return replay


async def _whole(receive: Receive, limit: int) -> tuple[bytes, bool]:
    """The body, and True if the sender went away before its end. Raises TooLargeError."""
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
    """The template, so that ids do not multiply the series."""
    return str(getattr(scope.get("route"), "path", "unmatched"))


def _tell(scope: Scope, status: int, seconds: float) -> None:
    """One line for what changed something, failed, or was slow. What was merely read is counted, not told: pollers
    would drown the rest."""
    told = scope["method"] not in READING or status >= 400 or status == 0 or seconds > SLOW_SECONDS
    if scope["path"].startswith(UNSEEN) and status != 500:
        return
    if not told or (_route(scope).endswith("/events") and status < 400):  # a stream is meant to last
        return
    details = {"route": _route(scope), "status": status, "seconds": round(seconds, 4)}
    log.info("%s %s", scope["method"], scope["path"][:LONGEST_PATH], extra=details)


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"the body is too large; at most {limit} bytes are allowed")


def wants(accept: str | None, offered: list[str]) -> str:
    """Which of the ``offered`` media types an Accept header prefers; the first if it does not say."""
    best, best_quality = offered[0], 0.0
    ranges: dict[str, float] = {}
    for part in (accept or "*/*").lower().split(","):
        kind, *parameters = (p.strip() for p in part.split(";"))
        quality: Any = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            ranges[kind] = float(quality)
        except ValueError:
            ranges[kind] = 0.0
    for kind in offered:
        candidates = (kind, f"{kind.partition('/')[0]}/*", "*/*")
        value = next((ranges[c] for c in candidates if c in ranges), 0.0)
        if value > best_quality:
            best, best_quality = kind, value
    return best
