"""A worker's claim on one experiment: kept alive by a thread, and looked at before every batch.

Three things end a run early: a cancel, the loss of the lease, and a worker that shuts down and hands the
experiment back. The thread notes the verdict; the run notices it at its next `Lease.check`. A run that does
not notice within the grace period is ended by ending the process, which Celery's parent then replaces.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from datetime import timedelta
from types import FrameType, TracebackType
from typing import Literal, Self, TypeVar

from sqlalchemy import exc, select, update
from sqlalchemy.orm import Session

from app.core.database import Database, utcnow
from app.core.objects import ObjectStoreError
from app.experiments import lifecycle
from app.settings import Settings
from app.tables.experiments import Experiment, Stage
from worker.lab.contracts import CanceledError

TICK_SECONDS = 0.5
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 5.0
STUCK_EXIT_CODE = 70
DATABASE_FAULTS = (exc.OperationalError, exc.InterfaceError, exc.TimeoutError)

Verdict = Literal["canceled", "lost", "handed back"]
T = TypeVar("T")
log = logging.getLogger(__name__)


class StoppedError(CanceledError):
    """The run must end now; `Lease.verdict` says why."""


class Lease:
    """The right of one attempt to write. Use as a context manager around the run."""

    def __init__(self, database: Database, settings: Settings, experiment_id: str, attempt: int) -> None:
        self.database = database
        self.experiment_id = experiment_id
        self.attempt = attempt
        self.owner = f"{experiment_id}:{attempt}"
        self.lease_seconds = settings.lease_seconds
        self.verdict: Verdict | None = None
        self.on_tick: Callable[[], None] = lambda: None
        self._settings = settings
        self._held_at = time.monotonic()
        self._stopped_at = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._keep,), name="lease", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def check(self) -> None:
        """Raise StoppedError if the run must end. Costs a look at the clock."""
        if time.monotonic() - self._held_at > self.lease_seconds:
            self.stop("lost")
        if self.verdict is not None:
            raise StoppedError(self.verdict)

    def stop(self, verdict: Verdict) -> None:
        """Ask the run to end. The loss of the lease outweighs the other reasons; otherwise the first counts."""
        if self.verdict is None:
            self._stopped_at = time.monotonic()
        if self.verdict is None or verdict == "lost":
            self.verdict = verdict

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A write transaction that begins by proving the lease. Raises StoppedError if it is lost."""
        with self.database.writing() as session:
            if not lifecycle.still_owned(session, self.experiment_id, self.attempt):
                self.stop("lost")
                raise StoppedError("lost")
            yield session

    def persist(self, action: Callable[[], T]) -> T:
        """Run ``action``, again with growing pauses while the database or the object store fails.

        The database is tried until the lease runs out, then StoppedError; if the lease somehow goes on, twice
        as long as a lease lasts, then its last error. The object store is tried for
        ``storage_patience_seconds``, then its last ObjectStoreError.
        """
        start, pause = time.monotonic(), FIRST_PAUSE_SECONDS
        while True:
            try:
                return action()
            except ObjectStoreError as error:
                patience = self._settings.storage_patience_seconds - (time.monotonic() - start)
                if patience <= 0:
                    raise
                self.check()
                pause = min(pause, patience)
                log.warning("%s; trying again", error)
            except DATABASE_FAULTS as error:
                if time.monotonic() - self._held_at > self.lease_seconds:
                    raise StoppedError("lost") from error
                if time.monotonic() - start > 2 * self.lease_seconds:
                    raise
                log.warning("database: %s; trying again", error.args[0] if error.args else error)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    @contextmanager
    def handed_back_on_sigterm(self) -> Iterator[None]:
        """While open, SIGTERM hands the experiment back instead of killing the process."""

        def hand_back(_signal: int, _frame: FrameType | None) -> None:
            self.stop("handed back")

        before = signal.signal(signal.SIGTERM, hand_back)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _keep(self) -> None:
        next_beat = time.monotonic() + self._settings.heartbeat_seconds
        while not self._done.wait(min(TICK_SECONDS, self._settings.heartbeat_seconds)):
            due = time.monotonic() >= next_beat
            if due:
                next_beat = time.monotonic() + self._settings.heartbeat_seconds
            try:
                if due:
                    self._beat()
                else:
                    self._look()
                self.on_tick()
            except (lifecycle.LeaseLost, StoppedError):
                self.stop("lost")
            except Exception as error:
                log.warning("heartbeat of %s failed: %s", self.owner, error)
            if time.monotonic() - self._held_at > self.lease_seconds:
                self.stop("lost")  # also for a run that no longer looks
            if self.verdict and time.monotonic() - self._stopped_at > self._settings.cancel_grace_seconds:
                self._abandon()

    def _beat(self) -> None:
        asked = time.monotonic()
        with self.database.writing() as session:
            cancel = lifecycle.renew(session, self.experiment_id, self.attempt, self.lease_seconds)
            session.execute(
                update(Stage)
                .where(Stage.owner == self.owner)
                .values(lease_expires_at=utcnow() + timedelta(seconds=self.lease_seconds))
            )
        self._held_at = asked
        if cancel:
            self.stop("canceled")

    def _look(self) -> None:
        """Between heartbeats, so that a cancel is seen at once and not only with the next one."""
        with self.database.reading() as session:
            row = session.execute(
                select(Experiment.attempt, Experiment.cancel_requested_at).where(
                    Experiment.id == self.experiment_id
                )
            ).one_or_none()
        if row is None or row.attempt != self.attempt:
            self.stop("lost")
        elif row.cancel_requested_at is not None:
            self.stop("canceled")

    def _abandon(self) -> None:
        """The run does not react: record what can be recorded and end this process."""
        log.error("%s: %s, but the run did not stop; ending the process", self.owner, self.verdict)
        try:
            with self.database.writing() as session:
                if self.verdict == "canceled":
                    lifecycle.finish(session, self.experiment_id, self.attempt, "canceled")
                elif self.verdict == "handed back":
                    lifecycle.wait(session, self.experiment_id, self.attempt, 0.0, "the worker shut down")
        finally:
            os._exit(STUCK_EXIT_CODE)
