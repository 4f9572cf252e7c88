"""The table of live workers, from which the API tells whether anybody is there to work."""

import logging
import os
import shutil
import subprocess
from datetime import timedelta
from pathlib import Path

from sqlalchemy import delete
from sqlalchemy.exc import SQLAlchemyError

from app.core.database import Database, utcnow
from app.experiments.tables import WorkerHeartbeat
from worker.upsert import upsert

FORGOTTEN_AFTER = timedelta(hours=1)
log = logging.getLogger(__name__)


class Registration:
    """One worker's row. No connection is kept open between calls, so a fork inherits none."""

    def __init__(self, database_url: str, name: str, queue: str) -> None:
        self._url = database_url
        self._row = {"name": name, "queue": queue, "device": device(), "started_at": utcnow()}

    def renew(self) -> None:
        """Give a sign of life, and forget workers that died long ago. A database that is away is no fault of ours."""
        database = Database(self._url)
        now = utcnow()
        try:
            with database.writing() as session:
                upsert(session, WorkerHeartbeat, [self._row | {"seen_at": now}], ["name"])
                session.execute(
                    delete(WorkerHeartbeat).where(WorkerHeartbeat.seen_at < now - FORGOTTEN_AFTER)
                )
        except SQLAlchemyError as error:
            log.warning("no sign of life could be given: %s", error)
        finally:
            database.close()

    def remove(self) -> None:
        """Sign off."""
        database = Database(self._url)
        try:
            with database.writing() as session:
                session.execute(delete(WorkerHeartbeat).where(WorkerHeartbeat.name == self._row["name"]))
        except SQLAlchemyError as error:
            log.warning("could not sign off: %s", error)
        finally:
            database.close()


def device() -> str:
    """What this machine computes on, found without torch: a forking parent must not touch CUDA."""
    return _gpus() or _cpu()


def _gpus() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    asked = subprocess.run(
        [tool, "--query-gpu=name", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    names = [line.strip() for line in asked.stdout.splitlines() if line.strip()]
    return ", ".join(names)[:200] if asked.returncode == 0 else ""


def _cpu() -> str:
    threads = f"{os.cpu_count()} threads"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"CPU, {threads}"
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else 'CPU'}, {threads}"[:200]
