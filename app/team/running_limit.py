"""How many experiments of an owner run at a time.

The relay publishes no more messages than an owner may have experiments running. A message is only a hint and may stay
with the broker while others are claimed, so the claim checks again (`app.experiments.scheduling`). The relay's query
leaves out owners at their limit, so one owner never blocks another.
"""

from datetime import timedelta

from sqlalchemy import ColumnElement, exists, func, or_, select
from sqlalchemy.orm import Session

from app.core.database import utcnow
from app.core.security import LOCAL
from app.settings import Settings
from app.tables.experiments import QUEUED, RUNNING, Experiment, Outbox
from app.tables.owners import Owner
from app.team.limits import limits_of


def rooms(session: Session, settings: Settings) -> dict[str, int]:
    """How many messages may be sent for each owner that has a limit; what was sent lately counts as running."""
    limited: ColumnElement[bool] = Owner.max_running.is_not(None)
    if settings.quota_running is not None:
        limited = or_(limited, Owner.id != LOCAL)
    owners = session.scalars(select(Owner).where(limited)).all()
    if not owners:
        return {}
    sent = exists().where(
        Outbox.experiment_id == Experiment.id,
        Outbox.published_at > utcnow() - timedelta(seconds=settings.republish_seconds),
    )
    query = (
        select(Experiment.owner_id, func.count())
        .where(
            Experiment.owner_id.in_([owner.id for owner in owners]),
            (Experiment.status == RUNNING) | ((Experiment.status == QUEUED) & sent),
        )
        .group_by(Experiment.owner_id)
    )
    taken = dict(session.execute(query).all())
    return {owner.id: _most(owner, settings) - taken.get(owner.id, 0) for owner in owners}


def has_room(session: Session, owner: Owner, settings: Settings) -> bool:
    """Whether one more experiment of the owner may run. The caller holds the lock on the owner's row."""
    most = limits_of(owner, settings).running
    if most is None:
        return True
    query = select(func.count()).where(Experiment.owner_id == owner.id, Experiment.status == RUNNING)
    return (session.scalar(query) or 0) < most


def _most(owner: Owner, settings: Settings) -> int:
    most = limits_of(owner, settings).running
    assert most is not None
    return most
