"""The limit of an owner's running experiments.

It is enforced twice. The relay publishes no more messages than experiments may run, and skips owners at their limit,
so that one owner never blocks another. But a message is only a hint and may stay in the broker while other experiments
are claimed, so the claim checks again (`app.experiments.scheduling`).
"""

from datetime import timedelta

from sqlalchemy import ColumnElement, exists, func, or_, select
from sqlalchemy.orm import Session

from app.core.database import utcnow
from app.core.security import LOCAL
from app.settings import Settings
from app.tables.experiments import QUEUED, RUNNING, Experiment, Outbox
from app.tables.owners import Owner
from app.team.quotas import limits_of


def free_slots(session: Session, settings: Settings) -> dict[str, int]:
    """How many messages may be published for each owner with a limit. Recently published messages count as running."""
    limited: ColumnElement[bool] = Owner.max_running.is_not(None)
    if settings.quota_running is not None:
        limited = or_(limited, Owner.id != LOCAL)
    owners = session.scalars(select(Owner).where(limited)).all()
    if not owners:
        return {}
    published = exists().where(
        Outbox.experiment_id == Experiment.id,
        Outbox.published_at > utcnow() - timedelta(seconds=settings.republish_seconds),
    )
    query = (
        select(Experiment.owner_id, func.count())
        .where(
            Experiment.owner_id.in_([owner.id for owner in owners]),
            (Experiment.status == RUNNING) | ((Experiment.status == QUEUED) & published),
        )
        .group_by(Experiment.owner_id)
    )
    used = dict(session.execute(query).all())
    limits = {owner.id: limits_of(owner, settings).running for owner in owners}
    return {owner: limit - used.get(owner, 0) for owner, limit in limits.items() if limit is not None}


def may_start_another(session: Session, owner: Owner, settings: Settings) -> bool:
    """Whether one more experiment of the owner may run. The caller holds the lock on the owner's row."""
    limit = limits_of(owner, settings).running
    if limit is None:
        return True
    query = select(func.count()).where(Experiment.owner_id == owner.id, Experiment.status == RUNNING)
    return (session.scalar(query) or 0) < limit
