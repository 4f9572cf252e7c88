"""What a worker lets be seen of itself: how busy it is, how fast it trains, and where in an experiment it is."""

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


class Watch:
    """Counts for one attempt; ``tick`` is called about twice a second by the lease's thread."""

    def __init__(self, database: Database, worker: str, pusher: Pusher) -> None:
        self._database = database
        self._pusher = pusher
        with database.reading() as session:
            found = session.execute(
                select(WorkerHeartbeat.queue, WorkerHeartbeat.device).where(WorkerHeartbeat.name == worker)
            ).one_or_none()
        queue, device = (found.queue, found.device) if found is not None else ("", "")
        self._busy = metrics.BUSY_SECONDS.labels(queue, device)
        self._seen = time.monotonic()

    def tick(self) -> None:
        now = time.monotonic()
        self._busy.inc(now - self._seen)
        self._seen = now
        self._pusher.push_if_due(self._database)


class Sight:
    """What a worker's process shows to the outside: its traces, and its counts through SQL."""

    def __init__(self, settings: Settings) -> None:
        self.process = "worker"
        self._settings = settings
        self._pusher: Pusher | None = None

    def begin(self) -> None:
        tracing.configure(self.process)
        self._pusher = Pusher(self.process)

    @property
    def pusher(self) -> Pusher:
        if self._pusher is None:
            self._pusher = Pusher(self.process)
        return self._pusher

    def tell(self) -> None:
        """After each task, since the process may end then."""
        database = Database(self._settings.database)
        try:
            self.pusher.push(database)
        finally:
            database.close()
        tracing.flush()

    @contextmanager
    def asked(self, name: str, origin: Mapping[str, str] | None) -> Iterator[None]:
        """A question that came with its request's ``origin``, as `app.core.broker` sends it."""
        known = dict(origin or {})
        parent = known.get("traceparent")
        with (
            bound_contextvars(request_id=known.get("request_id"), trace_id=tracing.trace_id(parent)),
            tracing.span(name, kind="consumer", parent=parent),
        ):
            yield


def scope(told: Scope, epoch: int, epochs: int) -> None:
    """A run reports how far it is: later lines of the log name the place, and the open span has the epoch."""
    bind_contextvars(arm=told.arm, seed=told.seed, stage=told.stage)
    if epoch > 0:
        metrics.EPOCHS.labels(told.stage or "").inc()
        tracing.event("epoch", {"epoch": epoch, "epochs": epochs})
