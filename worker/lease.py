"""A worker's time-limited claim on one experiment.

A run ends early for one of three reasons, the `StopReason`:

- ``canceled``: a client asked for it.
- ``lost``: the lease expired or the attempt no longer owns the experiment. It outweighs the other two.
- ``shut_down``: the worker received SIGTERM and gives the experiment back to the queue.

While a `Lease` is entered, its thread

- renews the lease every ``heartbeat_seconds``, and in between polls for a cancel;
- calls `Lease.on_tick`, which writes what the run has reported;
- sets `Lease.stop_reason`. It cannot interrupt the run, which stops at its next `Lease.check`, once a batch;
- ends the process if the run has not stopped within ``cancel_grace_seconds``; Celery's parent starts another child.

What is guaranteed:

- A transaction of `Lease.writing` locks the experiment's row and verifies its attempt number first, so an attempt that
  lost its lease writes nothing, whatever this process believes.
- `Lease.check` compares the clock with the start of the last renewal, so a worker that cannot reach the database stops
  when its lease expires, which is when another worker may claim the experiment. If no renewal has failed, the machine
  has been asleep; the run then waits for the next renewal, and goes on unless another attempt owns the experiment.
- `Lease.retrying` gives up when the lease expires, so a run never waits longer than that for the database.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from types import FrameType, TracebackType
from typing import Literal, Self, TypeVar

from sqlalchemy import exc, select, update
from sqlalchemy.orm import Session

from app.core.database import Database, from_now
from app.core.objects import ObjectStoreError
from app.experiments import lifecycle
from app.settings import Settings
from app.tables.experiments import Experiment, Stage
from worker.lab.contracts import CanceledError

TICK_SECONDS = 0.5
MIN_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.2, 5.0
STUCK_EXIT_CODE = 70
SHUT_DOWN = "the worker shut down"
DATABASE_ERRORS = (exc.OperationalError, exc.InterfaceError, exc.TimeoutError)

StopReason = Literal["canceled", "lost", "shut_down"]
T = TypeVar("T")
log = logging.getLogger(__name__)


class StoppedError(CanceledError):
    """The run must end now; `Lease.stop_reason` says why."""


class Lease:
    """The right of one attempt to write. Use as a context manager around the run."""

    def __init__(self, database: Database, settings: Settings, experiment_id: str, attempt: int) -> None:
        self.database = database
        self.experiment_id = experiment_id
        self.attempt = attempt
        self.owner = f"{experiment_id}:{attempt}"
        self.lease_seconds = settings.lease_seconds
        self.stop_reason: StopReason | None = None
        self.has_advanced = False
        """Whether the attempt has stored a stage or a checkpoint, so that the next attempt starts later than this one.
        """
        self.on_tick: Callable[[], None] = lambda: None
        self.on_outage: Callable[[str], None] = lambda _: None
        self._settings = settings
        self._renewed_at = time.monotonic()
        self._renewal_failed = False
        self._stopped_at = 0.0
        self._exited = threading.Event()
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._keep_alive,), name="lease", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exited.set()
        self._thread.join()

    def check(self) -> None:
        """Raise StoppedError if the run must end. While all is well it only reads the clock, so it may be called before
        every batch."""
        if self._is_expired():
            self._wait_for_renewal()
        if self.stop_reason is not None:
            raise StoppedError(self.stop_reason)

    def stop(self, reason: StopReason) -> None:
        """Ask the run to end. The first reason counts, except that ``lost`` replaces the others."""
        if self.stop_reason is None:
            self._stopped_at = time.monotonic()
        if self.stop_reason is None or reason == "lost":
            self.stop_reason = reason

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A write transaction that first locks and verifies the claim. Raises StoppedError if the lease is lost."""
        with self.database.writing() as session:
            if not lifecycle.still_owned(session, self.experiment_id, self.attempt):
                self.stop("lost")
                raise StoppedError("lost")
            yield session

    def retrying(self, action: Callable[[], T]) -> T:
        """Call ``action``, and again with exponential backoff while a back end fails. Returns its value.

        - Database errors are retried as long as the lease lasts, even if the run must stop, since that too has to be
          written. Then raises StoppedError; or, after twice the length of a lease, the error itself, if the thread
          can still renew the lease while ``action`` keeps failing.
        - Object store errors are retried for ``storage_patience_seconds``, then raised. Raises StoppedError as soon as
          the run must stop. The first one is told to `Lease.on_outage`.
        """
        started_at, backoff, told = time.monotonic(), MIN_BACKOFF_SECONDS, False
        while True:
            try:
                return action()
            except ObjectStoreError as error:
                seconds_left = self._settings.storage_patience_seconds - (time.monotonic() - started_at)
                if seconds_left <= 0:
                    raise
                self.check()
                backoff = min(backoff, seconds_left)
                log.warning("%s; retrying", error)
                if not told:
                    self.on_outage(f"{error}; retrying for {self._settings.storage_patience_seconds:g} s")
                    told = True
            except DATABASE_ERRORS as error:
                if self._is_expired():
                    self._wait_for_renewal()  # in vain if the thread is waiting for the same database
                if self.stop_reason == "lost":
                    raise StoppedError("lost") from error
                if time.monotonic() - started_at > 2 * self.lease_seconds:
                    raise
                log.warning("database: %s; retrying", error.args[0] if error.args else error)
            time.sleep(backoff)
            backoff = min(2 * backoff, MAX_BACKOFF_SECONDS)

    @contextmanager
    def stopped_by_sigterm(self) -> Iterator[None]:
        """While open, SIGTERM stops the run instead of killing the process."""

        def shut_down(_signal: int, _frame: FrameType | None) -> None:
            self.stop("shut_down")

        previous_handler = signal.signal(signal.SIGTERM, shut_down)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous_handler)

    def _is_expired(self) -> bool:
        """Whether the lease would have expired by this process's clock, whatever the database says."""
        return time.monotonic() - self._renewed_at > self.lease_seconds

    def _wait_for_renewal(self) -> None:
        """Give the thread the time of a heartbeat to renew a lease that has expired without a failed renewal."""
        deadline = time.monotonic() + self._settings.heartbeat_seconds
        while self._is_expired() and self.stop_reason != "lost":
            if self._renewal_failed or time.monotonic() > deadline:
                self.stop("lost")
            else:
                time.sleep(MIN_BACKOFF_SECONDS / 10)

    def _keep_alive(self) -> None:
        """The thread, until `__exit__`."""
        heartbeat_seconds = self._settings.heartbeat_seconds
        renew_at = time.monotonic() + heartbeat_seconds
        while not self._exited.wait(min(TICK_SECONDS, heartbeat_seconds)):
            renewal_due = time.monotonic() >= renew_at
            if renewal_due:
                renew_at = time.monotonic() + heartbeat_seconds
            self._tick(renewal_due)
            if self._is_expired() and self._renewal_failed:
                self.stop("lost")  # for a run that no longer calls `check`
            if self.stop_reason and time.monotonic() - self._stopped_at > self._settings.cancel_grace_seconds:
                self._end_process()

    def _tick(self, renewal_due: bool) -> None:
        try:
            if renewal_due:
                self._renew()
            else:
                self._poll()
            self.on_tick()
        except (lifecycle.LeaseLost, StoppedError):
            self.stop("lost")
        except Exception as error:
            log.warning("heartbeat of %s failed: %s", self.owner, error)

    def _renew(self) -> None:
        """Extend the lease and the claims on stages. Raises LeaseLost."""
        started_at = time.monotonic()  # not after the transaction: the lease must not seem longer than it is
        try:
            cancel_requested = self._write_renewal()
        except BaseException:
            self._renewal_failed = True
            raise
        self._renewed_at, self._renewal_failed = started_at, False
        if cancel_requested:
            self.stop("canceled")

    def _write_renewal(self) -> bool:
        with self.database.writing() as session:
            attempts = self._settings.max_attempts if self.has_advanced else None
            cancel_requested = lifecycle.renew(
                session, self.experiment_id, self.attempt, self.lease_seconds, attempts
            )
            session.execute(
                update(Stage)
                .where(Stage.owner == self.owner)
                .values(lease_expires_at=from_now(self.lease_seconds))
            )
        return cancel_requested

    def _poll(self) -> None:
        """Notice a cancel or a lost lease between renewals, which are too rare for a prompt cancel."""
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

    def _end_process(self) -> None:
        """Exit, since Python cannot stop a thread from outside; record the reason first if the database answers.

        A transaction that the run's thread has open is rolled back when its connection closes.
        """
        log.error("%s: %s, but the run did not stop; ending the process", self.owner, self.stop_reason)
        try:
            with self.database.writing() as session:
                if self.stop_reason == "canceled":
                    lifecycle.finish(session, self.experiment_id, self.attempt, "canceled")
                elif self.stop_reason == "shut_down":
                    lifecycle.wait(session, self.experiment_id, self.attempt, 0.0, SHUT_DOWN)
        finally:
            os._exit(STUCK_EXIT_CODE)
