"""Metrics, traces and log context of workers."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sqlalchemy import select
from structlog.contextvars import bind_contextvars, bound_contextvars

from app.core import metrics, tracing
from app.core.database import Database
from app.operations.health.shared_counters import Pusher
from app.settings import Settings
from app.tables.experiments import WorkerHeartbeat
from worker.lab.contracts import Scope


class AttemptTelemetry:
    """Counts how long a worker is busy with one attempt. The lease's thread calls `tick` about twice a second."""

    def __init__(self, database: Database, worker: str, pusher: Pusher) -> None:
        self._database = database
        self._pusher = pusher
        with database.reading() as session:
            row = session.execute(
                select(WorkerHeartbeat.queue, WorkerHeartbeat.device).where(WorkerHeartbeat.name == worker)
            ).one_or_none()
        queue, device = (row.queue, row.device) if row is not None else ("", "")
        self._busy_seconds = metrics.BUSY_SECONDS.labels(queue, device)
        self._counted_until = time.monotonic()

    def tick(self) -> None:
        now = time.monotonic()
        self._busy_seconds.inc(now - self._counted_until)
        self._counted_until = now
        self._pusher.push_if_due(self._database)


class WorkerTelemetry:
    """Traces of a worker's process, and its counters, which reach the API through SQL."""

    def __init__(self, settings: Settings) -> None:
        self.process = "worker"
        self._settings = settings
        self._pusher: Pusher | None = None

    def start(self) -> None:
        """Call it in the process that runs tasks: neither exporter nor counters survive a fork."""
        tracing.configure(self.process)
        self._pusher = Pusher(self.process)

    @property
    def pusher(self) -> Pusher:
        if self._pusher is None:
            self._pusher = Pusher(self.process)
        return self._pusher

    def push(self) -> None:
        """Send everything. Call it after each task, since the process may end then."""
        database = Database(self._settings.database)
        try:
            self.pusher.push(database)
        finally:
            database.close()
        tracing.flush()

    @contextmanager
    def request(self, name: str, origin: Mapping[str, str] | None) -> Iterator[None]:
        """A span for a task that answers a request; ``origin`` is the message's header from `app.core.broker`."""
        origin = origin or {}
        parent = origin.get("traceparent")
        with (
            bound_contextvars(request_id=origin.get("request_id"), trace_id=tracing.trace_id(parent)),
            tracing.span(name, kind="consumer", parent=parent),
        ):
            yield


def record_progress(scope: Scope, epoch: int, epochs: int) -> None:
    """Bind the scope to later log lines; count an epoch and add it to the open span."""
    bind_contextvars(arm=scope.arm, seed=scope.seed, stage=scope.stage)
    if epoch > 0:
        metrics.EPOCHS.labels(scope.stage or "").inc()
        tracing.event("epoch", {"epoch": epoch, "epochs": epochs})
