"""Finished stages and checkpoints of unfinished ones: bytes in the object store, rights and facts in SQL."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from hashlib import sha256

from sqlalchemy import or_, update

from app.core import metrics, tracing
from app.core.database import utcnow
from app.core.objects import Objects, ObjectStoreError
from app.tables.experiments import Stage
from worker.lab.contracts import StageBusyError, StageStore
from worker.lease import Lease, StoppedError
from worker.upsert import insert_into, upsert

DIGEST_BYTES = 32
log = logging.getLogger(__name__)


class SqlStageStore:
    """The lab's `StageStore`. What is damaged or gone counts as never computed."""

    def __init__(
        self, lease: Lease, objects: Objects, before_save: Callable[[], None], private: bool = False
    ) -> None:
        """``before_save`` makes durable what the run has reported so far, so a stage never outlives its numbers.

        ``private`` notes that no other experiment can use the stages, so that they go when it has ended.
        """
        self._lease = lease
        self._objects = objects
        self._before_save = before_save
        self._experiment_id = lease.experiment_id if private else None

    def load(self, key: str) -> bytes | None:
        return self._lease.persist(lambda: self._load(key))

    def save(self, key: str, kind: str, data: bytes) -> None:
        self._before_save()
        self._lease.check()
        self._lease.persist(lambda: self._objects.put(_stage(key), data))
        row = {
            "key": key,
            "kind": kind,
            "ready_at": utcnow(),
            "owner": None,
            "lease_expires_at": None,
            "size": len(data),
            "sha256": sha256(data).hexdigest(),
            "last_used_at": utcnow(),
            "experiment_id": self._experiment_id,
        }
        self._lease.persist(lambda: self._write(row))
        metrics.STAGES.labels(kind, "computed").inc()
        try:
            self._objects.delete(_checkpoint(key))
        except ObjectStoreError as error:
            log.warning("a checkpoint that is no longer needed stays: %s", error)

    def load_checkpoint(self, key: str) -> bytes | None:
        stored = self._lease.persist(lambda: self._objects.get(_checkpoint(key)))
        if stored is None:
            return None
        digest, data = stored[:DIGEST_BYTES], stored[DIGEST_BYTES:]
        if sha256(data).digest() != digest:
            log.warning("checkpoint %s is damaged; starting its stage anew", key)
            return None
        return data

    def save_checkpoint(self, key: str, data: bytes) -> None:
        self._before_save()
        self._lease.check()
        self._lease.persist(lambda: self._objects.put(_checkpoint(key), sha256(data).digest() + data))

    @contextmanager
    def claim(self, key: str, kind: str) -> Iterator[None]:
        if not self._lease.persist(lambda: self._take(key, kind)):
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
        sound = data is not None and sha256(data).hexdigest() == row.sha256
        if not sound:
            log.warning("stage %s is %s; computing it again", key, "missing" if data is None else "damaged")
        values = {"last_used_at": utcnow()} if sound else {"ready_at": None, "size": None, "sha256": None}
        with self._lease.writing() as session:
            session.execute(update(Stage).where(Stage.key == key, Stage.sha256 == row.sha256).values(values))
        if not sound:
            return None
        metrics.STAGES.labels(row.kind, "cache").inc()
        tracing.event("stage from the cache", {"stage.kind": row.kind, "stage.key": key})
        return data

    def _take(self, key: str, kind: str) -> bool:
        """Claim a stage that nobody holds, whose holder is dead, or that an earlier attempt of ours held."""
        now = utcnow()
        claim = {
            "owner": self._lease.owner,
            "lease_expires_at": now + timedelta(seconds=self._lease.lease_seconds),
        }
        with self._lease.writing() as session:
            taken = session.execute(
                insert_into(session, Stage)
                .values(key=key, kind=kind, last_used_at=now, experiment_id=self._experiment_id, **claim)
                .on_conflict_do_update(
                    index_elements=[Stage.key],
                    set_=claim,
                    where=or_(
                        Stage.owner.is_(None),
                        Stage.lease_expires_at < now,
                        Stage.owner.startswith(f"{self._lease.experiment_id}:"),
                    ),
                )
                .returning(Stage.key)
            ).scalar_one_or_none()
        return taken is not None

    def _release(self, key: str) -> None:
        free = update(Stage).where(Stage.key == key, Stage.owner == self._lease.owner)
        try:
            with self._lease.writing() as session:
                session.execute(free.values(owner=None, lease_expires_at=None))
        except StoppedError:
            log.info("stage %s: the claim went with the lease", key)
        except Exception as error:
            log.warning("stage %s: the claim will expire by itself: %s", key, error)

    def _write(self, row: dict[str, object]) -> None:
        with self._lease.writing() as session:
            upsert(session, Stage, [row], ["key"])


class FreshStore:
    """A `StageStore` in which an experiment finds nothing but what it computed itself, in whichever attempt.

    Every key is salted with the experiment's id. Nothing else differs, so claims, checkpoints and resuming work as
    they always do, and a stage that the arms share is still computed once.
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
