"""Which request a row's work is done for, so that a worker's logs and spans join those of the request.

It lies in SQL with the row: messages may be lost, and a row may wait for days and over restarts.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from app.core import log_context, tracing


class Requested:
    """Columns of a row whose work another process does. They are filled from what is bound when it is inserted."""

    request_id: Mapped[str | None] = mapped_column(String(64), default=log_context.request_id)
    traceparent: Mapped[str | None] = mapped_column(String(64), default=tracing.traceparent)

    def requested_again(self) -> None:
        """What is done for the row from now on is done for the request at hand."""
        self.request_id, self.traceparent = log_context.request_id(), tracing.traceparent()

    @contextmanager
    def origin(self, **more: str | int) -> Iterator[None]:
        """Bind what the request was known by, and ``more``, for a block."""
        with log_context.binding(
            request_id=self.request_id, trace_id=tracing.trace_id(self.traceparent), **more
        ):
            yield
