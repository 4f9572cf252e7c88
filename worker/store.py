"""Finished stages, and checkpoints of unfinished ones: contents in the object store, claims and checksums in SQL."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from hashlib import sha256
from typing import Any

from sqlalchemy import or_, update

from app.core import metrics, tracing
from app.core.database import database_now, from_now, upsert, utcnow
from app.core.objects import Objects, ObjectStoreError
from app.tables.experiments import Stage
from worker.lab.contracts import StageBusyError, StageStore
from worker.lease import Lease, StoppedError

DIGEST_BYTES = 32
log = logging.getLogger(__name__)


class SqlStageStore:
    """The lab's `StageStore`. Damaged and missing contents count as never computed."""

    def __init__(
        self, lease: Lease, objects: Objects, before_save: Callable[[], None], private: bool = False
    ) -> None:
        """``before_save`` writes what the run has reported so far: a resumed run does not report a stored stage again.

        ``private`` marks the stages as usable by this experiment only, so that they are deleted after it has ended.
        """
        self._lease = lease
        self._objects = objects
        self._before_save = before_save
        self._experiment_id = lease.experiment_id if private else None

    def load(self, key: str) -> bytes | None:
        return self._lease.retrying(lambda: self._load(key))

    def save(self, key: str, kind: str, data: bytes) -> None:
        self._before_save()
        self._lease.check()
        self._lease.retrying(lambda: self._objects.put(_stage(key), data))
        row = {
            "key": key,
            "kind": kind,
            "owner": None,
            "lease_expires_at": None,
            "size": len(data),
            "sha256": sha256(data).hexdigest(),
            "last_used_at": utcnow(),
            "experiment_id": self._experiment_id,
        }
        self._lease.retrying(lambda: self._write(row))
        self._lease.has_advanced = True
        metrics.STAGES.labels(kind, "computed").inc()
        try:
            self._objects.delete(_checkpoint(key))
        except ObjectStoreError as error:
            log.warning("an unneeded checkpoint was not deleted: %s", error)

    def load_checkpoint(self, key: str) -> bytes | None:
        content = self._lease.retrying(lambda: self._objects.get(_checkpoint(key)))
        if content is None:
            return None
        digest, data = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if sha256(data).digest() != digest:
            log.warning("checkpoint %s is damaged; computing its stage from the start", key)
            return None
        return data

    def save_checkpoint(self, key: str, data: bytes) -> None:
        self._before_save()
        self._lease.check()
        self._lease.retrying(lambda: self._objects.put(_checkpoint(key), sha256(data).digest() + data))
        self._lease.has_advanced = True

    @contextmanager
    def claim(self, key: str, kind: str) -> Iterator[None]:
        if not self._lease.retrying(lambda: self._try_claim(key, kind)):
            metrics.STAGES_BUSY.labels(kind).inc()
            raise StageBusyError(f"another worker computes stage {key[:12]} ({kind})")
        try:
            with tracing.span(f"stage {kind}", attributes={"stage.key": key}):
                yield
        finally:
            self._release(key)

    def _load(self, key: str) -> bytes | None:
        with self._lease.database.reading() as session:
            row = session.get(Stage, key)
        if row is None or row.ready_at is None:
            return None
        data = self._objects.get(_stage(key))
        intact = data is not None and sha256(data).hexdigest() == row.sha256
        if not intact:
            log.warning("stage %s is %s; computing it again", key, "missing" if data is None else "damaged")
        values = {"last_used_at": utcnow()} if intact else {"ready_at": None, "size": None, "sha256": None}
        with self._lease.writing() as session:
            session.execute(update(Stage).where(Stage.key == key, Stage.sha256 == row.sha256).values(values))
        if not intact:
            return None
        metrics.STAGES.labels(row.kind, "cache").inc()
        tracing.event("stage from the cache", {"stage.kind": row.kind, "stage.key": key})
        return data

    def _try_claim(self, key: str, kind: str) -> bool:
        """Claim a stage that has no owner, whose owner's claim expired, or that an earlier attempt of ours claimed."""
        row = {"key": key, "kind": kind, "last_used_at": utcnow(), "experiment_id": self._experiment_id}
        claim = (
            update(Stage)
            .where(
                Stage.key == key,
                or_(
                    Stage.owner.is_(None),
                    Stage.lease_expires_at < from_now(),
                    Stage.owner.startswith(f"{self._lease.experiment_id}:"),
                ),
            )
            .values(owner=self._lease.owner, lease_expires_at=from_now(self._lease.lease_seconds))
            .returning(Stage.key)
        )
        with self._lease.writing() as session:
            upsert(session, Stage, [row], ["key"])
            return session.execute(claim).scalar_one_or_none() is not None

    def _release(self, key: str) -> None:
        release = update(Stage).where(Stage.key == key, Stage.owner == self._lease.owner)
        try:
            with self._lease.writing() as session:
                session.execute(release.values(owner=None, lease_expires_at=None))
        except StoppedError:
            log.info("stage %s: not released, because the lease is lost; the claim will expire", key)
        except Exception as error:
            log.warning("stage %s: not released; the claim will expire: %s", key, error)

    def _write(self, row: Mapping[str, Any]) -> None:
        with self._lease.writing() as session:
            stored = {**row, "ready_at": database_now(session)}
            upsert(session, Stage, [stored], ["key"], lambda new: {column: new[column] for column in stored})


class UncachedStageStore:
    """A `StageStore` in which an experiment finds only stages that one of its own attempts computed.

    Every key is salted with the experiment's id. Claims, checkpoints and resuming work as usual, and a stage that the
    arms share is still computed once.
    """

    def __init__(self, store: StageStore, experiment_id: str) -> None:
        self._store = store
        self._salt = f"{experiment_id}:".encode()

    def load(self, key: str) -> bytes | None:
        return self._store.load(self._salted(key))

    def save(self, key: str, kind: str, data: bytes) -> None:
        self._store.save(self._salted(key), kind, data)

    def load_checkpoint(self, key: str) -> bytes | None:
        return self._store.load_checkpoint(self._salted(key))

    def save_checkpoint(self, key: str, data: bytes) -> None:
        self._store.save_checkpoint(self._salted(key), data)

    def claim(self, key: str, kind: str) -> AbstractContextManager[None]:
        return self._store.claim(self._salted(key), kind)

    def _salted(self, key: str) -> str:
        return sha256(self._salt + key.encode()).hexdigest()


def _stage(key: str) -> str:
    return f"stages/{key}.safetensors"


def _checkpoint(key: str) -> str:
    return f"checkpoints/{key}"
