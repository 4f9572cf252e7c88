"""Columns that record which request a row's work is done for, so that a worker's logs and spans join the request's.

They are stored with the row because messages may be lost and a row may wait for days, across restarts.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column
from structlog.contextvars import bind_contextvars, clear_contextvars, get_contextvars

from app.core import tracing


def current_request_id() -> str | None:
    """The request that the current work is done for, if any."""
    request_id: str | None = get_contextvars().get("request_id")
    return request_id


class RequestOriginMixin:
    """Columns of a row that another process works on, set from the current request when the row is inserted."""

    request_id: Mapped[str | None] = mapped_column(String(64), default=current_request_id)
    traceparent: Mapped[str | None] = mapped_column(String(64), default=tracing.traceparent)

    def update_origin(self) -> None:
        """Attribute all further work on the row to the current request."""
        self.request_id, self.traceparent = current_request_id(), tracing.traceparent()

    @contextmanager
    def bind_origin(self, **more: str | int) -> Iterator[None]:
        """Bind the request's ids and ``more`` to the logs for a block; whatever the block binds ends with it too."""
        outer = get_contextvars()
        bind_contextvars(request_id=self.request_id, trace_id=tracing.trace_id(self.traceparent), **more)
        try:
            yield
        finally:
            clear_contextvars()
            bind_contextvars(**outer)
