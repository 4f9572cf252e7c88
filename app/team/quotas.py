"""What an owner uses, and the refusal of what would be too much.

``running`` is not refused: more is queued, and the relay holds it back until there is room (`app.operations.relay`).
Quotas look at what is there when a request comes; a running experiment is not stopped because its owner's time or
space has run out meanwhile.
"""

from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.core.database import LIMITS, OWNER, utcnow
from app.core.errors import TooManyError
from app.core.security import UNLIMITED, Limits
from app.tables.experiments import QUEUED, RUNNING, Attempt, Experiment
from app.tables.owners import Owner
from app.tables.uploads import Upload
from app.tables.webhooks import Webhook
from app.team.keys import repository

DAYS = 30
RETRY_QUEUE, RETRY_TIME, RETRY_BYTES, RETRY_WEBHOOKS = 60, 3600, 3600, 3600


def admit(session: Session, experiments: int) -> None:
    """Raise TooManyError if the session's owner may not queue so many experiments more."""
    limits: Limits = session.info.get(LIMITS) or UNLIMITED
    if limits.queued is None and limits.device_seconds is None and limits.bytes is None:
        return
    _lock_owner(session)
    _check(limits.queued, experiments, lambda: queued(session), "queued experiments", RETRY_QUEUE)
    _check(limits.device_seconds, 1, lambda: device_seconds(session), "device seconds in 30 days", RETRY_TIME)
    admit_bytes(session, 1)


def admit_bytes(session: Session, size: int) -> None:
    """Raise TooManyError if the session's owner may not store so many bytes more."""
    limits: Limits = session.info.get(LIMITS) or UNLIMITED
    _check(limits.bytes, size, lambda: stored_bytes(session), "stored bytes", RETRY_BYTES)


def admit_webhook(session: Session) -> None:
    """Raise TooManyError if the session's owner may not have one webhook more."""
    limits: Limits = session.info.get(LIMITS) or UNLIMITED
    if limits.webhooks is not None:
        _lock_owner(session)
        _check(limits.webhooks, 1, lambda: webhooks(session), "webhooks", RETRY_WEBHOOKS)


def queued(session: Session) -> int:
    """Experiments of the session's owner that wait."""
    return _count(session, QUEUED)


def running(session: Session) -> int:
    """Experiments of the session's owner that run."""
    return _count(session, RUNNING)


def device_seconds(session: Session) -> float:
    """Seconds of the last 30 days for which workers ran the owner's experiments, those that still run included."""
    now = utcnow()
    ended = repository.device_seconds(session, session.info[OWNER], (now - timedelta(days=DAYS)).date())
    started = session.scalars(
        select(Attempt.started_at)
        .join(Experiment, Experiment.id == Attempt.experiment_id)
        .where(Experiment.status == RUNNING, Attempt.number == Experiment.attempt)
    )
    return ended + sum((now - begin).total_seconds() for begin in started)


def stored_bytes(session: Session) -> int:
    """Bytes of the files of the owner's experiments, and of what the owner sent. Equal files of experiments are
    stored once but counted each time."""
    made = session.scalar(select(func.sum(Experiment.stored_bytes)))
    given = session.scalar(select(func.sum(Upload.size)))
    return int(made or 0) + int(given or 0)


def webhooks(session: Session) -> int:
    """Webhooks of the session's owner."""
    return session.scalar(select(func.count()).select_from(Webhook)) or 0


def _lock_owner(session: Session) -> None:
    """Two requests at once must not both find the last place free. Rows that refer to the owner may still be added."""
    owner_id: str = session.info[OWNER]
    session.execute(select(Owner.id).where(Owner.id == owner_id).with_for_update(key_share=True))


def _count(session: Session, status: str) -> int:
    query = select(func.count()).select_from(Experiment).where(Experiment.status == status)
    return session.scalar(query) or 0


def _check(limit: int | None, more: int, used: Callable[[], float], what: str, retry_after: int) -> None:
    if limit is None:
        return
    now = used()
    if now + more > limit:
        asked = f", {more} more are asked for" if more > 1 else ""
        raise TooManyError(f"the limit is {limit} {what}; {now:.0f} are used{asked}", retry_after=retry_after)
