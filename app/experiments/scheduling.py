"""Fair scheduling: which queued experiment a worker claims when a message wakes it, and the messages that are due.

SQL decides at the moment of the claim, so the order and the number of messages do not matter:

1. Owners take turns: first the owner with the fewest running experiments, then the one who was served longest ago.
   A thousand experiments of one owner delay the first one of another by at most one experiment per worker.
2. Within an owner the highest priority comes first, then the longest wait.

So a priority orders the owner's own work and takes nothing from other owners.
"""

import logging
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, delete, exists, func, or_, select, update
from sqlalchemy.orm import Session, load_only

from app.core.database import database_now, from_now
from app.experiments import lifecycle
from app.experiments.workers import repository as workers
from app.settings import Settings
from app.specs.placement import claimable_placements
from app.specs.stages import LAB_VERSION
from app.tables.experiments import QUEUED, RUNNING, Experiment, Idempotency, Outbox
from app.tables.owners import Owner
from app.team import quotas

log = logging.getLogger(__name__)
BATCH = 200
MESSAGE_COLUMNS = (Experiment.owner_id, Experiment.placement, Experiment.request_id, Experiment.traceparent)


class Claim(NamedTuple):
    """A claimed experiment. ``attempt`` is the fencing token."""

    experiment_id: str
    attempt: int


def claim_next(
    session: Session, hint: str, worker: str, serves: Sequence[str], settings: Settings
) -> Claim | None:
    """Claim the next experiment for ``worker``, which serves these queues. None if there is none for it.

    ``hint`` is the experiment that the message named, and counts as due. If it is still queued and
    this worker may not run it, a new message is written.
    """
    live = workers.live_queues(session)
    placements = claimable_placements(serves, live, gpu_on_demand=settings.gpu_on_demand)
    eligible = (
        Experiment.status == QUEUED,
        Experiment.placement.in_(placements),
        Experiment.lab_version <= LAB_VERSION,
        or_(Experiment.due_at <= from_now(), Experiment.id == hint),
    )
    for owner_id in _waiting_owners(session, eligible):
        # Locks are released before the next owner is tried: two workers may try the owners in different orders.
        with session.begin_nested() as savepoint:
            claim = _claim_for_owner(session, owner_id, eligible, worker, settings)
            if claim is not None:
                return claim
            savepoint.rollback()
    _announce_again(session, hint, placements, settings)
    return None


def _claim_for_owner(
    session: Session,
    owner_id: str,
    eligible: Sequence[ColumnElement[bool]],
    worker: str,
    settings: Settings,
) -> Claim | None:
    """Claim the owner's next experiment, unless the owner's limit of running experiments is reached."""
    # The lock keeps two workers from both using the last place. FOR NO KEY UPDATE lets new experiments be inserted.
    lock = {"key_share": True}
    owner = session.get_one(Owner, owner_id, with_for_update=lock, populate_existing=True)
    if not quotas.may_start_another(session, owner, settings):
        return None
    experiment_id = _lock_first(session, owner_id, eligible)
    if experiment_id is None:
        return None
    attempt = lifecycle.claim(session, experiment_id, worker, settings.lease_seconds)
    if attempt is None:
        return None
    owner.served_at = database_now(session)
    return Claim(experiment_id, attempt)


def _waiting_owners(session: Session, eligible: Sequence[ColumnElement[bool]]) -> Sequence[str]:
    """Owners with eligible experiments, in the order of their turns."""
    running = (
        select(func.count())
        .where(Experiment.owner_id == Owner.id, Experiment.status == RUNNING)
        .correlate(Owner)
        .scalar_subquery()
    )
    waiting = exists().where(Experiment.owner_id == Owner.id, *eligible)
    query = select(Owner.id).where(waiting)
    return session.scalars(query.order_by(running, Owner.served_at.nulls_first(), Owner.id)).all()


def _lock_first(session: Session, owner_id: str, eligible: Sequence[ColumnElement[bool]]) -> str | None:
    """The owner's next experiment, locked."""
    # Two queries, because an index answers each of them without sorting.
    of_owner = (Experiment.owner_id == owner_id, *eligible)
    priority = session.scalar(select(func.max(Experiment.priority)).where(*of_owner))
    if priority is None:
        return None
    query = select(Experiment.id).where(*of_owner, Experiment.priority == priority)
    query = query.order_by(Experiment.queued_at, Experiment.id).limit(1)
    return session.scalar(query.with_for_update(skip_locked=True))


def _announce_again(session: Session, hint: str, placements: Collection[str], settings: Settings) -> None:
    """Replace the message of an experiment that is still queued but not for this worker."""
    row = session.execute(
        select(Experiment.placement, Experiment.lab_version).where(
            Experiment.id == hint, Experiment.status == QUEUED
        )
    ).one_or_none()
    if row is None:
        return
    if row.lab_version > LAB_VERSION:
        log.warning(
            "experiment %s needs lab version %d, this worker has %d: restart it with the code of the API",
            *(hint, row.lab_version, LAB_VERSION),
        )
    runs_here = row.lab_version <= LAB_VERSION and row.placement in placements
    delay = 0.0 if runs_here else settings.stage_busy_seconds
    unsent = select(Outbox.id).where(Outbox.experiment_id == hint, Outbox.published_at.is_(None))
    if session.scalar(unsent.limit(1)) is None:
        session.add(Outbox(experiment_id=hint, not_before=from_now(delay)))


def due(session: Session, without: Sequence[str] = ()) -> Sequence[Outbox]:
    """Unsent messages that are due, oldest first, except those of the owners ``without``."""
    query = select(Outbox).where(Outbox.published_at.is_(None), Outbox.not_before <= from_now())
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
    session.execute(update(Outbox).where(Outbox.id.in_(message_ids)).values(published_at=from_now()))


def unannounced(session: Session, seconds: float) -> dict[str, str]:
    """Queued experiments without an unsent message and without one that was sent in the last ``seconds``.

    Returns the placement of each by its id.
    """
    recent = exists().where(
        Outbox.experiment_id == Experiment.id,
        Outbox.published_at.is_(None) | (Outbox.published_at > from_now(-seconds)),
    )
    query = select(Experiment.id, Experiment.placement).where(Experiment.status == QUEUED, ~recent)
    return dict(session.execute(query.order_by(Experiment.created_at).limit(BATCH)).all())


def republish(session: Session, ids: Sequence[str]) -> None:
    """Write new messages for `unannounced` experiments. A duplicate does no harm."""
    session.add_all(Outbox(experiment_id=i, not_before=from_now()) for i in ids)


def expired(session: Session, lease_seconds: float) -> list[tuple[str, datetime]]:
    """(id, end of the lease) of running experiments whose lease has expired.

    A lease that ends too far in the future was written before the database's clock was set back.
    """
    end = Experiment.lease_expires_at
    has_expired = or_(end < from_now(), end > from_now(2 * lease_seconds))
    query = select(Experiment.id, end).where(Experiment.status == RUNNING, has_expired)
    rows = session.execute(query.order_by(end).limit(BATCH))
    return [(row.id, row.lease_expires_at) for row in rows]


def reap(session: Session, experiment_id: str, expired_at: datetime) -> bool:
    """Take an experiment from a worker whose lease has expired. False if the lease was renewed meanwhile."""
    experiment = lifecycle.lock(session, experiment_id)
    if experiment is None or experiment.status != RUNNING or experiment.lease_expires_at != expired_at:
        return False
    reason = f"no heartbeat from {experiment.worker}"
    return lifecycle.lose(session, experiment_id, experiment.attempt, reason)


def purge(session: Session, idempotency_seconds: float, outbox_seconds: float) -> None:
    """Delete answers to old Idempotency-Keys, and old messages that were sent."""
    session.execute(delete(Idempotency).where(Idempotency.created_at < from_now(-idempotency_seconds)))
    session.execute(delete(Outbox).where(Outbox.published_at < from_now(-outbox_seconds)))
