"""Writes what a run reports to SQL and the object store.

Reports are buffered. The lease's thread flushes the buffer about twice a second in one transaction, so training does
not wait for the database; if that fails, the buffer is kept for the next flush. Files are written at once. Numbers have
a natural key, so reporting one again replaces it.
"""

import math
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from app.core.database import new_id, upsert, utcnow
from app.core.objects import Objects, put_content
from app.experiments import lifecycle
from app.results.artifacts.storage import delete_unreferenced, lock_contents, update_stored_bytes
from app.results.search import indexing
from app.specs.artifacts import ArtifactKind
from app.tables.artifacts import Artifact
from app.tables.experiments import Experiment, LogLine
from app.tables.results import ArmNote, MetricPoint, ResultValue
from worker.lab.contracts import LabError, Scope
from worker.lease import Lease
from worker.telemetry import record_progress

WARNING, ERROR = "warning", "error"
EVERY_ARM, EVERY_SEED = "", -1
"""Stand for all arms and all seeds of a scope in tables whose keys allow no null."""
NOTE_CHARACTERS = 2000
MIN_ESTIMATE_SECONDS = 1.0

ArmSeed = tuple[str, int]


@dataclass
class Batch:
    """Reports since the last flush, by natural key where they have one."""

    points: dict[tuple[str, int, str, int], float] = field(default_factory=dict)
    results: dict[ArmSeed, dict[str, float | None]] = field(default_factory=dict)
    warnings: dict[tuple[str, int, str], None] = field(default_factory=dict)
    errors: dict[ArmSeed, str] = field(default_factory=dict)
    lines: list[tuple[datetime, str]] = field(default_factory=list)
    progress: dict[str, Any] | None = None

    def __bool__(self) -> bool:
        reports = (self.points, self.results, self.warnings, self.errors, self.lines)
        return any(reports) or self.progress is not None

    def followed_by(self, later: "Batch") -> "Batch":
        return Batch(
            self.points | later.points,
            self.results | later.results,
            self.warnings | later.warnings,
            self.errors | later.errors,
            self.lines + later.lines,
            later.progress or self.progress,
        )


class SqlRecorder:
    """The lab's `Recorder` for one attempt."""

    def __init__(self, lease: Lease, objects: Objects) -> None:
        self.succeeded: set[ArmSeed] = set()
        self.failed: dict[ArmSeed, str] = {}
        self._lease = lease
        self._objects = objects
        self._batch = Batch()
        self._batch_lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._first_progress: tuple[float, float] | None = None

    def check(self) -> None:
        self._lease.check()

    def progress(self, scope: Scope, epoch: int, epochs: int, fraction: float) -> None:
        record_progress(scope, epoch, epochs)
        progress = {
            "arm": scope.arm,
            "seed": scope.seed,
            "stage": scope.stage,
            "epoch": epoch,
            "epochs": epochs,
            "fraction": round(fraction, 6),
            "seconds_left": self._seconds_left(fraction),
        }
        with self._batch_lock:
            self._batch.progress = progress

    def metric(self, scope: Scope, name: str, step: int, value: float) -> None:
        if not math.isfinite(value):
            return  # the arm's error names epoch and batch
        with self._batch_lock:
            self._batch.points[*_key(scope), name, step] = value

    def result(self, scope: Scope, values: dict[str, float | None]) -> None:
        finite = {
            name: value if value is not None and math.isfinite(value) else None
            for name, value in values.items()
        }
        key = _key(scope)
        self.succeeded.add(key)
        self.failed.pop(key, None)
        with self._batch_lock:
            self._batch.errors.pop(key, None)
            self._batch.results[key] = finite

    def warning(self, scope: Scope, message: str) -> None:
        with self._batch_lock:
            self._batch.warnings[*_key(scope), message[:NOTE_CHARACTERS]] = None

    def arm_failed(self, scope: Scope, error: LabError) -> None:
        key, message = _key(scope), str(error)[:NOTE_CHARACTERS]
        self.failed[key] = message
        self.succeeded.discard(key)
        with self._batch_lock:
            self._batch.results.pop(key, None)
            self._batch.errors[key] = message

    def log(self, message: str) -> None:
        at = utcnow()
        with self._batch_lock:
            self._batch.lines.extend((at, line) for line in message.splitlines())

    def artifact(
        self,
        scope: Scope,
        name: str,
        kind: ArtifactKind,
        media_type: str,
        data: bytes,
        metadata: dict[str, Any],
    ) -> None:
        """Write the content before its row, so that a row never refers to a missing content; also one that is stored,
        so that a retry replaces a damaged object. A content that the file had before is deleted last."""
        digest, key = self._lease.retrying(lambda: put_content(self._objects, data))
        row = {
            "experiment_id": self._lease.experiment_id,
            "arm": scope.arm,
            "seed": scope.seed,
            "name": name,
            "kind": kind,
            "media_type": media_type,
            "size": len(data),
            "sha256": digest,
            "object_key": key,
            "details": metadata,
            "created_at": utcnow(),
            "expired_at": None,
            "expired_why": None,
        }
        replaced = self._lease.retrying(lambda: self._write_artifact(row, data))
        if replaced is not None:
            self._lease.retrying(lambda: delete_unreferenced(self._lease.database, self._objects, [replaced]))

    def flush(self) -> None:
        """Write the buffer. If that fails, the buffer is kept and the error raised.

        Raises StoppedError if the lease is lost.
        """
        with self._write_lock:
            with self._batch_lock:
                batch, self._batch = self._batch, Batch()
            if not batch:
                return
            try:
                with self._lease.writing() as session:
                    self._write(session, batch)
            except BaseException:
                with self._batch_lock:
                    self._batch = batch.followed_by(self._batch)
                raise

    def _write(self, session: Session, batch: Batch) -> None:
        experiment = self._lease.experiment_id
        points = [
            {
                "experiment_id": experiment,
                "arm": arm,
                "seed": seed,
                "name": name,
                "step": step,
                "value": value,
            }
            for (arm, seed, name, step), value in batch.points.items()
        ]
        keys = ["experiment_id", "arm", "seed", "name", "step"]
        upsert(session, MetricPoint, points, keys, lambda new: {"value": new.value})
        lines = [
            LogLine(experiment_id=experiment, attempt=self._lease.attempt, at=at, message=line)
            for at, line in batch.lines
        ]
        session.add_all(lines)
        for arm, seed, message in batch.warnings:
            self._write_note(session, (arm, seed), WARNING, message)
        for key, message in batch.errors.items():
            session.execute(delete(ResultValue).where(*_of(ResultValue, experiment, key)))
            indexing.refresh(session, experiment, key[0])
            self._write_note(session, key, ERROR, message)
        for key, values in batch.results.items():
            self._write_result(session, key, values)
        if batch.progress is not None:
            session.execute(
                update(Experiment).where(Experiment.id == experiment).values(progress=batch.progress)
            )
            lifecycle.emit(session, experiment, "progress", batch.progress)

    def _write_note(self, session: Session, key: ArmSeed, kind: str, message: str) -> None:
        """Store a warning or error, with an event unless the same one is stored. The experiment's row is locked."""
        arm, seed = key
        if session.get(ArmNote, (self._lease.experiment_id, arm, seed, kind, message)) is not None:
            return
        session.add(
            ArmNote(experiment_id=self._lease.experiment_id, arm=arm, seed=seed, kind=kind, message=message)
        )
        text = message if kind == WARNING else f"the arm failed: {message}"
        self._emit(session, "warning", key, {"message": text})

    def _write_result(self, session: Session, key: ArmSeed, values: dict[str, float | None]) -> None:
        """Replace the numbers and delete the error of an arm and seed; emit an event if the numbers differ."""
        experiment_id = self._lease.experiment_id
        of_arm = _of(ResultValue, experiment_id, key)
        rows = session.execute(select(ResultValue.metric, ResultValue.value).where(*of_arm))
        stored_values = dict(rows.all())
        session.execute(delete(ArmNote).where(*_of(ArmNote, experiment_id, key), ArmNote.kind == ERROR))
        if stored_values == values:
            return
        session.execute(delete(ResultValue).where(*of_arm))
        arm, seed = key
        session.add_all(
            ResultValue(experiment_id=experiment_id, arm=arm, seed=seed, metric=metric, value=value)
            for metric, value in values.items()
        )
        session.flush()
        indexing.refresh(session, experiment_id, arm)
        self._emit(session, "result", key, {"values": values})

    def _write_artifact(self, row: dict[str, Any], data: bytes) -> str | None:
        """Returns the key of the content that this one replaces, if any."""
        experiment_id, object_key = row["experiment_id"], row["object_key"]
        with self._lease.writing() as session:
            lock_contents(session, [object_key])
            if not self._objects.exists(object_key):  # housekeeping deleted it before this row refers to it
                put_content(self._objects, data)
            stored = session.scalars(
                select(Artifact).where(Artifact.experiment_id == experiment_id, Artifact.name == row["name"])
            ).one_or_none()
            if stored is not None and stored.sha256 == row["sha256"]:
                stored.details = row["details"]
                stored.expired_at = stored.expired_why = None
                update_stored_bytes(session, [experiment_id])
                return None
            artifact_id, replaced = (stored.id, stored.object_key) if stored is not None else (new_id(), None)
            session.merge(Artifact(id=artifact_id, **row))
            update_stored_bytes(session, [experiment_id])
            lifecycle.emit(session, experiment_id, "artifact", {"id": artifact_id, "name": row["name"]})
        return replaced

    def _emit(self, session: Session, kind: str, key: ArmSeed, data: dict[str, Any]) -> None:
        arm, seed = key
        scope = {"arm": arm or None, "seed": seed if seed != EVERY_SEED else None}
        lifecycle.emit(session, self._lease.experiment_id, kind, scope | data)

    def _seconds_left(self, fraction: float) -> float | None:
        """Seconds until the run ends, at the mean speed since this attempt's first report; None in the first second."""
        now = time.monotonic()
        if self._first_progress is None:
            self._first_progress = (now, fraction)
        elapsed, done = now - self._first_progress[0], fraction - self._first_progress[1]
        if elapsed < MIN_ESTIMATE_SECONDS or done <= 0:
            return None
        return round(elapsed / done * (1 - fraction), 1)


def _key(scope: Scope) -> ArmSeed:
    arm = scope.arm if scope.arm is not None else EVERY_ARM
    return arm, scope.seed if scope.seed is not None else EVERY_SEED


def _of(table: type[ResultValue] | type[ArmNote], experiment_id: str, key: ArmSeed) -> tuple[Any, ...]:
    arm, seed = key
    return table.experiment_id == experiment_id, table.arm == arm, table.seed == seed
