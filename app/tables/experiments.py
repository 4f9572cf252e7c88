"""Tables of experiments and of everything that happens to them."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text, select
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship

from app.core.database import Base, BigId, Json, UtcDateTime, new_id, utcnow
from app.core.errors import require
from app.core.security import LOCAL
from app.core.tracing import RequestOriginMixin
from app.specs.placement import RATHER_CPU
from app.specs.stages import LAB_VERSION
from app.specs.status import STATUSES
from app.tables.owners import Owned, owned_index

QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELED = STATUSES
EXPERIMENT = "experiments.id"
IDLE, BUSY, DRAINING = "idle", "busy", "draining"
"""States that a worker reports."""


class Experiment(RequestOriginMixin, Owned, Base):
    """One spec, one row. ``attempt`` is the fencing token: only the worker that holds it may write."""

    __tablename__ = "experiments"
    __table_args__ = (
        owned_index("ix_experiments_created", "created_at", "id", "name"),
        owned_index("ix_experiments_status_created", "status", "created_at", "id"),
        owned_index("ix_experiments_dataset_created", "dataset", "created_at", "id"),
        owned_index("ix_experiments_model_created", "model", "created_at", "id"),
        owned_index("ix_experiments_attack_created", "attack", "created_at", "id"),
        owned_index("ix_experiments_stored", "stored_bytes"),
        Index("ix_experiments_lease", "status", "lease_expires_at"),
        Index("ix_experiments_turn", "status", "owner_id", "priority", "queued_at", "id"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(200))
    status: Mapped[str] = mapped_column(String(16), default=QUEUED)
    spec: Mapped[dict[str, Any]] = mapped_column(Json)
    spec_hash: Mapped[str] = mapped_column(String(64), index=True)
    dataset: Mapped[str] = mapped_column(String(64))
    model: Mapped[str] = mapped_column(String(64))
    attack: Mapped[str] = mapped_column(String(64))

    placement: Mapped[str] = mapped_column(String(16), default=RATHER_CPU, server_default=RATHER_CPU)
    """Which kind of worker may run it, see `app.specs.placement`."""
    priority: Mapped[int] = mapped_column(default=0, server_default="0")
    lab_version: Mapped[int] = mapped_column(default=LAB_VERSION, server_default="1")
    """Lab version of the keys of its stages and arms. Only a worker with this version or a newer one may claim it."""

    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    due_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utcnow)
    """It is not claimed earlier."""
    queued_at: Mapped[datetime] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    cancel_requested_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    attempt: Mapped[int] = mapped_column(default=0)
    attempts_left: Mapped[int] = mapped_column()
    worker: Mapped[str | None] = mapped_column(String(200))
    lease_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    progress: Mapped[dict[str, Any]] = mapped_column(Json, default=dict)
    error: Mapped[dict[str, Any] | None] = mapped_column(Json)
    stored_bytes: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """Total size of its files, kept current by `app.results.artifacts.storage` so that no query sums over them."""

    stages: Mapped[list[dict[str, Any]] | None] = mapped_column(Json, deferred=True)
    """The planned stages (kind, arm, seed, key) in order, under the keys of ``lab_version``. Null in
    experiments from before revision 0016. Deferred, because lists do not show it."""

    attempts: Mapped[list["Attempt"]] = relationship(
        cascade="all, delete-orphan", passive_deletes=True, order_by="Attempt.number"
    )


class Label(Base):
    """What an experiment can be found by besides its columns: each tag (kind ``tag``: key and value), each
    defense (kind ``defense``: the key is its name), and each upload (kind ``model`` or ``dataset``: the key is its id).
    """

    __tablename__ = "experiment_labels"
    __table_args__ = (Index("ix_experiment_labels_lookup", "kind", "key", "value", "experiment_id"),)

    experiment_id: Mapped[str] = mapped_column(ForeignKey(EXPERIMENT, ondelete="CASCADE"), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(String(200), default="")


class Attempt(Base):
    """One worker's try. ``outcome``: succeeded, failed, canceled, lost, waiting (for a stage that another
    worker computes, or for the object store), or null while it runs."""

    __tablename__ = "attempts"

    experiment_id: Mapped[str] = mapped_column(ForeignKey(EXPERIMENT, ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    worker: Mapped[str] = mapped_column(String(200))
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    outcome: Mapped[str | None] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(Text)


class Outbox(Base):
    """A message to publish, written in the transaction that requires it."""

    __tablename__ = "outbox"
    __table_args__ = (Index("ix_outbox_due", "published_at", "not_before"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    experiment_id: Mapped[str] = mapped_column(ForeignKey(EXPERIMENT, ondelete="CASCADE"), index=True)
    not_before: Mapped[datetime] = mapped_column(UtcDateTime)
    published_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Event(Base):
    """An event, for pollers and server-sent events; ``id`` orders them."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_experiment", "experiment_id", "id"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    experiment_id: Mapped[str] = mapped_column(ForeignKey(EXPERIMENT, ondelete="CASCADE"))
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    type: Mapped[str] = mapped_column(String(32))
    data: Mapped[dict[str, Any]] = mapped_column(Json)


class LogLine(Base):
    """One line of an experiment's log."""

    __tablename__ = "log_lines"
    __table_args__ = (Index("ix_log_lines_experiment", "experiment_id", "id"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    experiment_id: Mapped[str] = mapped_column(ForeignKey(EXPERIMENT, ondelete="CASCADE"))
    attempt: Mapped[int]
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    message: Mapped[str] = mapped_column(Text)


class Stage(Base):
    """A content-addressed stage. One worker (``owner``) computes it under a lease; then it is ready for all."""

    __tablename__ = "stages"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    ready_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    owner: Mapped[str | None] = mapped_column(String(300))
    lease_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    size: Mapped[int | None] = mapped_column(BigInteger)
    sha256: Mapped[str | None] = mapped_column(String(64))
    last_used_at: Mapped[datetime] = mapped_column(UtcDateTime)
    experiment_id: Mapped[str | None] = mapped_column(String(36))
    """The reproduction that alone can use it, which may have been deleted; null for a stage that all share."""


class Idempotency(Owned, Base):
    """The first answer to an Idempotency-Key, which is unique per owner."""

    __tablename__ = "idempotency"

    owner_id: Mapped[str] = mapped_column(
        String(36), ForeignKey("owners.id"), primary_key=True, default=LOCAL
    )
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    body_hash: Mapped[str] = mapped_column(String(64))
    experiment_id: Mapped[str] = mapped_column(String(36))
    response: Mapped[dict[str, Any]] = mapped_column(Json)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class WorkerHeartbeat(Base):
    """A worker process and its last heartbeat. ``queue`` holds its queues, separated by commas."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    queue: Mapped[str] = mapped_column(String(32))
    device: Mapped[str] = mapped_column(String(200))
    device_kind: Mapped[str] = mapped_column(String(8), default="cpu", server_default="cpu")
    memory: Mapped[dict[str, int | None]] = mapped_column(Json, default=dict, server_default="{}")
    state: Mapped[str] = mapped_column(String(16), default=IDLE, server_default=IDLE)
    version: Mapped[str] = mapped_column(String(64), default="", server_default="")
    lab_version: Mapped[int] = mapped_column(default=LAB_VERSION, server_default="1")
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    seen_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)


def require_experiment(session: Session, experiment_id: str) -> Experiment:
    """The experiment. Raises NotFoundError."""
    return require(session.get(Experiment, experiment_id), "experiment", experiment_id)


def check_experiment(session: Session, experiment_id: str) -> None:
    """Check that an experiment exists, without reading the whole row. Raises NotFoundError."""
    found = session.scalar(select(Experiment.id).where(Experiment.id == experiment_id))
    require(found, "experiment", experiment_id)
