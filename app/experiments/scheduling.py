"""Whose turn it is: which of the queued experiments a worker takes when a message wakes it.

SQL decides at the moment of the claim, so neither the order of messages nor their number does:

1. Between owners it goes by turns: first whoever has the fewest experiments running, then whoever was served longest
   ago. One owner's thousand experiments delay another's first one by at most one experiment a worker.
2. Within an owner the higher priority comes first, then who waits longer.

A priority therefore orders the owner's own work and takes nothing from others.
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


class Taken(NamedTuple):
    """An experiment and the number of the attempt, which is the fencing token."""

    experiment_id: str
    attempt: int


def take(session: Session, hint: str, worker: str, serves: Sequence[str], settings: Settings) -> Taken | None:
    """Claim the next experiment for ``worker``, which serves these queues; None if there is none for it.

    ``hint`` is the experiment that the message named. It is due, whatever this machine's clock says. If it still waits
    and this worker may not have it, a new message will come.
    """
    live = workers.kinds(session)
    takes = claimable_placements(serves, live, gpu_on_demand=settings.gpu_on_demand)
    eligible = (
        Experiment.status == QUEUED,
        Experiment.placement.in_(takes),
        Experiment.lab_version <= LAB_VERSION,
        or_(Experiment.due_at <= utcnow(), Experiment.id == hint),
    )
    for owner_id in _owners(session, eligible):
        # What one try has locked is let go before the next: two workers may try the same owners in another order.
        with session.begin_nested() as savepoint:
            taken = _serve(session, owner_id, eligible, worker, settings)
            if taken is not None:
                return taken
            savepoint.rollback()
    _announce_again(session, hint, takes, settings)
    return None


def _serve(
    session: Session,
    owner_id: str,
    eligible: Sequence[ColumnElement[bool]],
    worker: str,
    settings: Settings,
) -> Taken | None:
    """Claim the owner's next experiment, if the owner has room."""
    # Two workers must not both find the last place free. New experiments of the owner's are not kept waiting.
    lock = {"key_share": True}
    owner = session.get_one(Owner, owner_id, with_for_update=lock, populate_existing=True)
    chosen = _first(session, owner_id, eligible) if running_limit.has_room(session, owner, settings) else None
    attempt = lifecycle.claim(session, chosen, worker, settings.lease_seconds) if chosen else None
    if chosen is None or attempt is None:
        return None
    owner.served_at = utcnow()
    return Taken(chosen, attempt)


def _owners(session: Session, eligible: Sequence[ColumnElement[bool]]) -> Sequence[str]:
    """Owners for whom something waits, in the order of their turns."""
    runs = (
        select(func.count())
        .where(Experiment.owner_id == Owner.id, Experiment.status == RUNNING)
        .correlate(Owner)
        .scalar_subquery()
    )
    waits = exists().where(Experiment.owner_id == Owner.id, *eligible)
    query = select(Owner.id).where(waits)
    return session.scalars(query.order_by(runs, Owner.served_at.nulls_first(), Owner.id)).all()


def _first(session: Session, owner_id: str, eligible: Sequence[ColumnElement[bool]]) -> str | None:
    """The owner's next experiment, locked. Two queries, so that an index gives each without sorting."""
    mine = (Experiment.owner_id == owner_id, *eligible)
    top = session.scalar(select(func.max(Experiment.priority)).where(*mine))
    if top is None:
        return None
    query = select(Experiment.id).where(*mine, Experiment.priority == top)
    query = query.order_by(Experiment.queued_at, Experiment.id).limit(1)
    return session.scalar(query.with_for_update(skip_locked=True))


def _announce_again(session: Session, hint: str, takes: Collection[str], settings: Settings) -> None:
    """Keep the message of an experiment that waits on, but not for this worker."""
    row = session.execute(
        select(Experiment.placement, Experiment.lab_version).where(
            Experiment.id == hint, Experiment.status == QUEUED
        )
    ).one_or_none()
    if row is None:
        return
    if row.lab_version > LAB_VERSION:
        log.warning(
            "experiment %s is for lab version %d, this worker has %d: restart it with the code of the API",
            *(hint, row.lab_version, LAB_VERSION),
        )
    mine = row.lab_version <= LAB_VERSION and row.placement in takes
    delay = timedelta(seconds=0.0 if mine else settings.stage_busy_seconds)
    unsent = select(Outbox.id).where(Outbox.experiment_id == hint, Outbox.published_at.is_(None))
    if session.scalar(unsent.limit(1)) is None:
        session.add(Outbox(experiment_id=hint, not_before=utcnow() + delay))
