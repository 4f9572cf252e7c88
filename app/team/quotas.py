"""Quotas: what an owner uses, and the rejection of requests that would exceed a limit.

Quotas are checked when a request arrives; an experiment that runs is not stopped when its owner exceeds one. The limit
of running experiments rejects nothing and is enforced twice. The relay publishes no more messages than experiments may
run, and skips owners at their limit, so that one owner never blocks another. But a message is only a hint and may stay
in the broker while other experiments are claimed, so the claim checks again (`app.experiments.scheduling`).
"""

from collections.abc import Callable
from dataclasses import fields
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, exists, func, or_, select
from sqlalchemy.orm import Session

from app.core.database import LIMITS, OWNER, database_now, from_now, upsert
from app.core.errors import TooManyError
from app.core.security import LOCAL, UNLIMITED, Limits
from app.settings import Settings
from app.tables.experiments import QUEUED, RUNNING, Attempt, Experiment, Outbox
from app.tables.keys import DeviceTime
from app.tables.owners import Owner
from app.tables.uploads import Upload
from app.tables.webhooks import Webhook
from app.team.keys import repository

DAYS = 30


def limits_of(owner: Owner, settings: Settings) -> Limits:
    """The owner's own limits, else those of the settings, which apply only to owners with keys: not to ``local``."""

    def limit(name: str) -> int | None:
        own: int | None = getattr(owner, f"max_{name}")
        if own is not None or owner.id == LOCAL:
            return own
        default: int | None = getattr(settings, "rate_limit" if name == "requests" else f"quota_{name}")
        return default

    return Limits(**{field.name: limit(field.name) for field in fields(Limits)})


def admit_experiments(session: Session, number: int) -> None:
    """Raise TooManyError if the session's owner may not queue ``number`` more experiments."""
    limits = _limits(session)
    if limits.queued is None and limits.device_seconds is None and limits.bytes is None:
        return
    _lock_owner(session)
    _check(session, "queued", number)
    _check(session, "device_seconds", 1)
    _check(session, "bytes", 1)


def admit_bytes(session: Session, more: int) -> None:
    """Raise TooManyError if the session's owner may not store ``more`` bytes than now."""
    if _limits(session).bytes is not None and more > 0:
        _lock_owner(session)
        _check(session, "bytes", more)


def free_bytes(session: Session) -> int | None:
    """How many bytes the session's owner may still store; None: any number."""
    limit = _limits(session).bytes
    return None if limit is None else limit - stored_bytes(session)


def admit_webhook(session: Session) -> None:
    """Raise TooManyError if the session's owner may not have another webhook."""
    if _limits(session).webhooks is not None:
        _lock_owner(session)
        _check(session, "webhooks", 1)


def usage(session: Session) -> dict[str, tuple[float, int | None]]:
    """For each quota what the session's owner uses, and the limit."""
    limits = _limits(session)
    return {name: (quota.used(session), getattr(limits, name)) for name, quota in QUOTAS.items()}


def queued(session: Session) -> int:
    """The number of queued experiments of the session's owner."""
    return _count(session, QUEUED)


def running(session: Session) -> int:
    """The number of running experiments of the session's owner."""
    return _count(session, RUNNING)


def device_seconds(session: Session) -> float:
    """Seconds for which workers ran the owner's experiments in the last 30 days, including the current attempts."""
    now = database_now(session)
    ended = repository.device_seconds(session, session.info[OWNER], (now - timedelta(days=DAYS)).date())
    started = session.scalars(
        select(Attempt.started_at)
        .join(Experiment, Experiment.id == Attempt.experiment_id)
        .where(Experiment.status == RUNNING, Attempt.number == Experiment.attempt)
    )
    return ended + sum((now - begin).total_seconds() for begin in started)


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
        Outbox.published_at > from_now(-settings.republish_seconds),
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


def add_device_time(session: Session, owner_id: str, started_at: datetime, ended_at: datetime) -> None:
    """Add an attempt to the device time of its owner, on the day on which it ended, in the transaction of its end."""
    seconds = max(0.0, (ended_at - started_at).total_seconds())
    row = {"owner_id": owner_id, "day": ended_at.date(), "seconds": seconds}
    key = ["owner_id", "day"]
    upsert(session, DeviceTime, [row], key, lambda new: {"seconds": DeviceTime.seconds + new.seconds})


def stored_bytes(session: Session) -> int:
    """What is stored of the owner's uploads, and the files of the owner's experiments.

    A file that several experiments have is stored once but counted for each of them.
    """
    of_experiments = session.scalar(select(func.sum(Experiment.stored_bytes)))
    of_uploads = session.scalar(select(func.sum(Upload.stored_bytes)))
    return int(of_experiments or 0) + int(of_uploads or 0)


def webhooks(session: Session) -> int:
    """The number of webhooks of the session's owner."""
    return session.scalar(select(func.count()).select_from(Webhook)) or 0


class Quota(NamedTuple):
    """``used`` computes what the session's owner uses, ``unit`` names it in messages."""

    used: Callable[[Session], float]
    unit: str
    retry_after: int = 3600


QUOTAS = {
    "queued": Quota(queued, "queued experiments", 60),
    "running": Quota(running, "running experiments"),
    "device_seconds": Quota(device_seconds, "device seconds in 30 days"),
    "bytes": Quota(stored_bytes, "stored bytes"),
    "webhooks": Quota(webhooks, "webhooks"),
}
"""By the name of the limit."""


def _limits(session: Session) -> Limits:
    return session.info.get(LIMITS) or UNLIMITED


def _lock_owner(session: Session) -> None:
    """Serialize the checks of an owner, so that two requests cannot both use the last free place.

    A FOR NO KEY UPDATE lock: rows that refer to the owner can still be inserted.
    """
    owner_id: str = session.info[OWNER]
    session.execute(select(Owner.id).where(Owner.id == owner_id).with_for_update(key_share=True))


def _count(session: Session, status: str) -> int:
    query = select(func.count()).select_from(Experiment).where(Experiment.status == status)
    return session.scalar(query) or 0


def _check(session: Session, name: str, more: int) -> None:
    limit, quota = getattr(_limits(session), name), QUOTAS[name]
    if limit is None:
        return
    used = quota.used(session)
    if used + more > limit:
        requested = f", {more} more are requested" if more > 1 else ""
        message = f"the limit is {limit} {quota.unit}; {used:.0f} are used{requested}"
        raise TooManyError(message, retry_after=quota.retry_after)
