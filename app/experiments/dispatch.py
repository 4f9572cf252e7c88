"""The relay's part in SQL: messages that are due, expired leases, rows that can be deleted."""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import delete, exists, select, update
from sqlalchemy.orm import Session, load_only

from app.core.database import utcnow
from app.experiments import lifecycle
from app.tables.experiments import QUEUED, RUNNING, Experiment, Idempotency, Outbox

BATCH = 200
MESSAGE_COLUMNS = (Experiment.owner_id, Experiment.placement, Experiment.request_id, Experiment.traceparent)


def due(session: Session, without: Sequence[str] = ()) -> Sequence[Outbox]:
    """Unsent messages that are due, oldest first, except those of the owners ``without``."""
    query = select(Outbox).where(Outbox.published_at.is_(None), Outbox.not_before <= utcnow())
    if without:
        query = query.join(Experiment, Experiment.id == Outbox.experiment_id)
        query = query.where(Experiment.owner_id.not_in(without))
    return session.scalars(query.order_by(Outbox.id).limit(BATCH)).all()


def still_queued(session: Session, ids: Sequence[str]) -> dict[str, Experiment]:
    """The experiments among ``ids`` that are still queued, without their specs."""
    query = select(Experiment).options(load_only(*MESSAGE_COLUMNS))
    query = query.where(Experiment.id.in_(ids), Experiment.status == QUEUED)
    return {experiment.id: experiment for experiment in session.scalars(query)}


def mark_published(session: Session, message_ids: Sequence[int]) -> None:
    session.execute(update(Outbox).where(Outbox.id.in_(message_ids)).values(published_at=utcnow()))


def unannounced(session: Session, seconds: float) -> dict[str, str]:
    """Queued experiments without an unsent message and without one that was sent in the last ``seconds``.

    Returns the placement of each by its id.
    """
    recent = exists().where(
        Outbox.experiment_id == Experiment.id,
        Outbox.published_at.is_(None) | (Outbox.published_at > utcnow() - timedelta(seconds=seconds)),
    )
    query = select(Experiment.id, Experiment.placement).where(Experiment.status == QUEUED, ~recent)
    return dict(session.execute(query.order_by(Experiment.created_at).limit(BATCH)).all())


def republish(session: Session, ids: Sequence[str]) -> None:
    """Write new messages for `unannounced` experiments. A duplicate does no harm."""
    session.add_all(Outbox(experiment_id=i, not_before=utcnow()) for i in ids)


def expired(session: Session) -> Sequence[str]:
    """Running experiments whose lease has expired."""
    query = select(Experiment.id).where(Experiment.status == RUNNING, Experiment.lease_expires_at < utcnow())
    return session.scalars(query.limit(BATCH)).all()


def reap(session: Session, experiment_id: str) -> bool:
    """Take an experiment from a worker whose lease has expired. False if the lease was renewed meanwhile."""
    experiment = lifecycle.lock(session, experiment_id)
    if experiment is None or experiment.status != RUNNING:
        return False
    if experiment.lease_expires_at is not None and experiment.lease_expires_at >= utcnow():
        return False
    reason = f"no heartbeat from {experiment.worker}"
    return lifecycle.lose(session, experiment_id, experiment.attempt, reason)


def purge(session: Session, idempotency_seconds: float, outbox_seconds: float) -> None:
    """Delete answers to old Idempotency-Keys, and old messages that were sent."""
    now = utcnow()
    session.execute(
        delete(Idempotency).where(Idempotency.created_at < now - timedelta(seconds=idempotency_seconds))
    )
    session.execute(delete(Outbox).where(Outbox.published_at < now - timedelta(seconds=outbox_seconds)))
