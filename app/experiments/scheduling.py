"""Fair scheduling: which queued experiment a worker claims when a message wakes it.

SQL decides at the moment of the claim, so the order and the number of messages do not matter:

1. Owners take turns: first the owner with the fewest running experiments, then the one who was served longest ago.
   A thousand experiments of one owner delay the first one of another by at most one experiment per worker.
2. Within an owner the highest priority comes first, then the longest wait.

So a priority orders the owner's own work and takes nothing from other owners.
"""

import logging
from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, exists, func, or_, select
from sqlalchemy.orm import Session

from app.core.database import utcnow
from app.experiments import lifecycle
from app.experiments.workers import repository as workers
from app.settings import Settings
from app.specs.placement import claimable_placements
from app.specs.stages import LAB_VERSION
from app.tables.experiments import QUEUED, RUNNING, Experiment, Outbox
from app.tables.owners import Owner
from app.team import running_limit

log = logging.getLogger(__name__)


class Claim(NamedTuple):
    """A claimed experiment. ``attempt`` is the fencing token."""

    experiment_id: str
    attempt: int


def claim_next(
    session: Session, hint: str, worker: str, serves: Sequence[str], settings: Settings
) -> Claim | None:
    """Claim the next experiment for ``worker``, which serves these queues. None if there is none for it.

    ``hint`` is the experiment that the message named. It counts as due, whatever this machine's clock says. If it is
    still queued and this worker may not run it, a new message is written.
    """
    live = workers.live_queues(session)
    placements = claimable_placements(serves, live, gpu_on_demand=settings.gpu_on_demand)
    eligible = (
        Experiment.status == QUEUED,
        Experiment.placement.in_(placements),
        Experiment.lab_version <= LAB_VERSION,
        or_(Experiment.due_at <= utcnow(), Experiment.id == hint),
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
    if not running_limit.may_start_another(session, owner, settings):
        return None
    experiment_id = _lock_first(session, owner_id, eligible)
    if experiment_id is None:
        return None
    attempt = lifecycle.claim(session, experiment_id, worker, settings.lease_seconds)
    if attempt is None:
        return None
    owner.served_at = utcnow()
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
    delay = timedelta(seconds=0.0 if runs_here else settings.stage_busy_seconds)
    unsent = select(Outbox.id).where(Outbox.experiment_id == hint, Outbox.published_at.is_(None))
    if session.scalar(unsent.limit(1)) is None:
        session.add(Outbox(experiment_id=hint, not_before=utcnow() + delay))
