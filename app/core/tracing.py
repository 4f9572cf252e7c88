"""OpenTelemetry traces from a request to the stages of its experiment.

They are on only where ``OTEL_EXPORTER_OTLP_ENDPOINT`` is set, and go there by OTLP over HTTP; the other ``OTEL_*``
variables of the SDK (sampling, headers, delays) count too. Otherwise nothing of OpenTelemetry is even imported.

A trace crosses from one process to the next, and outlives them, as a W3C ``traceparent`` in SQL or in a message.
"""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, Literal, Protocol

from app.core import log_context

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
FLUSH_SECONDS = 3.0
Kind = Literal["server", "producer", "consumer", "internal"]


class Span(Protocol):
    """What can be told of a piece of work while it is done."""

    def set_attribute(self, key: str, value: Any) -> None: ...
    def update_name(self, name: str) -> None: ...


class _NoSpan:
    def set_attribute(self, key: str, value: Any) -> None:
        pass

    def update_name(self, name: str) -> None:
        pass


_provider: Any = None


def configure(process: str) -> None:
    """Send this process's spans, if an endpoint is set. A forked process calls this anew: threads do not survive."""
    global _provider  # noqa: PLW0603
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    named: dict[str, str | bool | int | float] = {
        "service.name": f"bdlab-{process}",
        "service.namespace": "backdoor-lab",
        "service.version": version("backdoor-lab"),
        "process.pid": os.getpid(),
    }
    _provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))


def flush() -> None:
    """Send what has ended; called before a process may end. A collector that is away costs a few seconds at most."""
    if _provider is not None:
        # The exporter's retries pay no heed to force_flush's own limit.
        sending = threading.Thread(target=_provider.force_flush, daemon=True)
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
    """A piece of work, under the span that is open here or under the ``traceparent`` of another process.

    The ids that are bound are its attributes, as ``bdlab.experiment_id``. An error that leaves it marks it.
    """
    if _provider is None:
        yield _NoSpan()
        return
    from opentelemetry.trace import SpanKind  # noqa: PLC0415
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    known = {f"bdlab.{key}": value for key, value in log_context.bound().items() if key != "trace_id"}
    context = TraceContextTextMapPropagator().extract({"traceparent": parent}) if parent else None
    with _provider.get_tracer("backdoor-lab").start_as_current_span(
        name, context=context, kind=SpanKind[kind.upper()], attributes={**known, **(attributes or {})}
    ) as opened:
        yield opened


def event(name: str, attributes: Mapping[str, str | int]) -> None:
    """Something that happened within the open span, if there is one."""
    if _provider is not None:
        from opentelemetry.trace import get_current_span  # noqa: PLC0415

        get_current_span().add_event(name, attributes)


def traceparent() -> str | None:
    """The open span as it is handed on; None without one."""
    if _provider is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


def trace_id(parent: str | None) -> str | None:
    """The trace that a ``traceparent`` belongs to, for the logs."""
    parts = (parent or "").split("-")
    return parts[1] if len(parts) == 4 else None
