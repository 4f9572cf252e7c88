"""OpenTelemetry traces from a request to the stages of its experiment.

Spans are sent by OTLP over HTTP if ``OTEL_EXPORTER_OTLP_ENDPOINT`` is set; the SDK's other ``OTEL_*`` variables
(sampling, headers, delays) apply too. Otherwise spans do nothing, and the SDK is not imported.

A trace continues in other processes, and after restarts, through a W3C ``traceparent`` in SQL or in a message.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Literal

from opentelemetry.trace import NoOpTracer, Span, SpanKind, Tracer, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column
from structlog.contextvars import bind_contextvars, clear_contextvars, get_contextvars

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
FLUSH_SECONDS = 3.0
Kind = Literal["server", "producer", "consumer", "internal"]

_propagator = TraceContextTextMapPropagator()
_tracer: Tracer = NoOpTracer()
_force_flush: Callable[[], object] | None = None


def configure(process: str) -> None:
    """Send this process's spans if an endpoint is set. A forked process calls it again: threads do not survive."""
    global _tracer, _force_flush
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return
    # Slow to import, and needed only if an endpoint is set.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    resource = Resource.create(
        {
            "service.name": f"bdlab-{process}",
            "service.namespace": "backdoor-lab",
            "service.version": version("backdoor-lab"),
            "process.pid": os.getpid(),
        }
    )
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer, _force_flush = provider.get_tracer("backdoor-lab"), provider.force_flush


def flush() -> None:
    """Send ended spans; call before a process may exit. Takes at most `FLUSH_SECONDS` if the collector is down."""
    if _force_flush is not None:
        # In a thread because the exporter's retries ignore the timeout of force_flush.
        sending = threading.Thread(target=_force_flush, daemon=True)
        sending.start()
        sending.join(FLUSH_SECONDS)


@contextmanager
def span(
    name: str,
    *,
    kind: Kind = "internal",
    parent: str | None = None,
    attributes: Mapping[str, str | int] | None = None,
) -> Iterator[Span]:
    """Open a span under the current one, or under the ``traceparent`` of another process.

    Ids that are bound for the logs become attributes, for example ``bdlab.experiment_id``. An exception marks the span
    as failed.
    """
    bound = {
        f"bdlab.{key}": value
        for key, value in get_contextvars().items()
        if key != "trace_id" and value is not None
    }
    context = _propagator.extract({"traceparent": parent}) if parent else None
    with _tracer.start_as_current_span(
        name, context=context, kind=SpanKind[kind.upper()], attributes={**bound, **(attributes or {})}
    ) as opened:
        yield opened


def event(name: str, attributes: Mapping[str, str | int]) -> None:
    """Add an event to the current span, if there is one."""
    get_current_span().add_event(name, attributes)


def traceparent() -> str | None:
    """The current span as a ``traceparent``; None without one."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get("traceparent")


def trace_id(parent: str | None) -> str | None:
    """The trace id in a ``traceparent``, for the logs."""
    parts = (parent or "").split("-")
    return parts[1] if len(parts) == 4 else None


def current_request_id() -> str | None:
    """The request that the current work is done for, if any."""
    request_id: str | None = get_contextvars().get("request_id")
    return request_id


class RequestOriginMixin:
    """Columns of a row that another process works on, set from the current request when the row is inserted."""

    request_id: Mapped[str | None] = mapped_column(String(64), default=current_request_id)
    traceparent: Mapped[str | None] = mapped_column(String(64), default=traceparent)

    def update_origin(self) -> None:
        """Attribute all further work on the row to the current request."""
        self.request_id, self.traceparent = current_request_id(), traceparent()

    @contextmanager
    def bind_origin(self, **more: str | int) -> Iterator[None]:
        """Bind the request's ids and ``more`` to the logs for a block; whatever the block binds ends with it too."""
        outer = get_contextvars()
        bind_contextvars(request_id=self.request_id, trace_id=trace_id(self.traceparent), **more)
        try:
            yield
        finally:
            clear_contextvars()
            bind_contextvars(**outer)
