"""The table of live workers, from which the API knows which workers are running and whether they are busy."""

import logging
from collections.abc import Callable, Sequence

from sqlalchemy import delete
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.core.database import Database, database_now, from_now, upsert, utcnow
from app.core.versions import code_version
from app.specs.stages import LAB_VERSION
from app.tables.experiments import BUSY, DRAINING, IDLE, WorkerHeartbeat
from worker.device import MemoryWatch, find_device

EXPIRES_AFTER_SECONDS = 3600.0
log = logging.getLogger(__name__)


class Registration:
    """One worker's row. No connection stays open between calls, so a forked child inherits none."""

    def __init__(
        self, database_url: str, name: str, queues: Sequence[str], is_busy: Callable[[], bool]
    ) -> None:
        device = find_device()
        self._url = database_url
        self._is_busy = is_busy
        self._memory = MemoryWatch(device)
        self._row = {
            "name": name,
            "queue": ",".join(queues),
            "device": device.name,
            "device_kind": device.kind,
            "version": code_version(),
            "lab_version": LAB_VERSION,
            "started_at": utcnow(),
        }
        self._draining = self._writing = False

    def renew(self) -> None:
        """Write a heartbeat, and delete workers that died long ago. Database errors are only logged."""
        state = DRAINING if self._draining else BUSY if self._is_busy() else IDLE

        def write(session: Session) -> None:
            row = self._row | {
                "state": state,
                "memory": self._memory.read(),
                "seen_at": database_now(session),
            }
            upsert(
                session, WorkerHeartbeat, [row], ["name"], lambda new: {column: new[column] for column in row}
            )
            session.execute(
                delete(WorkerHeartbeat).where(WorkerHeartbeat.seen_at < from_now(-EXPIRES_AFTER_SECONDS))
            )

        self._write(write, "the heartbeat could not be written")
        if self._draining and state != DRAINING:
            self.renew()  # `drain` was called by a signal meanwhile

    def drain(self) -> None:
        """Show that this worker claims nothing more. May be called from a signal handler."""
        self._draining = True
        if not self._writing:  # else the `renew` that the signal interrupted writes it
            self.renew()

    def remove(self) -> None:
        """Delete the row when the worker shuts down."""
        statement = delete(WorkerHeartbeat).where(WorkerHeartbeat.name == self._row["name"])
        self._write(lambda session: session.execute(statement), "the worker's row could not be deleted")

    def _write(self, action: Callable[[Session], object], failure: str) -> None:
        self._writing = True
        database = Database(self._url)
        try:
            with database.writing() as session:
                action(session)
        except SQLAlchemyError as error:
            log.warning("%s: %s", failure, error)
        finally:
            database.close()
            self._writing = False
