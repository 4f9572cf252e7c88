"""The table of live workers, from which the API tells whether anybody is there to work, and how busy they are."""

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta

from sqlalchemy import delete
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.core.database import Database, utcnow
from app.core.versions import code_version
from app.specs.stages import LAB_VERSION
from app.tables.experiments import BUSY, DRAINING, IDLE, WorkerHeartbeat
from worker.device import MemoryWatch, find
from worker.upsert import upsert

FORGOTTEN_AFTER = timedelta(hours=1)
log = logging.getLogger(__name__)


class Registration:
    """One worker's row. No connection is kept open between calls, so a fork inherits none."""

    def __init__(
        self, database_url: str, name: str, queues: Sequence[str], is_busy: Callable[[], bool]
    ) -> None:
        device = find()
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
        """Give a sign of life, and forget workers that died long ago. A database that is away is no fault of ours."""
        state = DRAINING if self._draining else BUSY if self._is_busy() else IDLE
        now = utcnow()
        row = self._row | {"state": state, "memory": self._memory.read(), "seen_at": now}

        def write(session: Session) -> None:
            upsert(session, WorkerHeartbeat, [row], ["name"])
            session.execute(delete(WorkerHeartbeat).where(WorkerHeartbeat.seen_at < now - FORGOTTEN_AFTER))

        self._write(write, "no sign of life could be given")
        if self._draining and state != DRAINING:
            self.renew()  # a signal came meanwhile

    def drain(self) -> None:
        """Say that this worker takes nothing more. May be called from a signal handler."""
        self._draining = True
        if not self._writing:  # else `renew`, which the signal interrupted, says it
            self.renew()

    def remove(self) -> None:
        """Sign off."""
        mine = delete(WorkerHeartbeat).where(WorkerHeartbeat.name == self._row["name"])
        self._write(lambda session: session.execute(mine), "could not sign off")

    def _write(self, work: Callable[[Session], object], otherwise: str) -> None:
        self._writing = True
        database = Database(self._url)
        try:
            with database.writing() as session:
                work(session)
        except SQLAlchemyError as error:
            log.warning("%s: %s", otherwise, error)
        finally:
            database.close()
            self._writing = False
