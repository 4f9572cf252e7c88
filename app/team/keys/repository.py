"""Queries about keys and owners, on sessions that are not filtered by owner."""

from collections.abc import Sequence
from datetime import date, datetime, timedelta

from sqlalchemy import func, or_, select, tuple_, update
from sqlalchemy.orm import Session

from app.tables.keys import ApiKey, DeviceTime
from app.tables.owners import Owner


def any_key(session: Session) -> bool:
    """Whether a key was ever created."""
    return session.scalar(select(ApiKey.id).limit(1)) is not None


def by_prefix(session: Session, prefix: str) -> ApiKey | None:
    return session.scalars(select(ApiKey).where(ApiKey.prefix == prefix)).one_or_none()


def touch(session: Session, key_id: str, now: datetime, interval: timedelta) -> None:
    """Set when a key was last used, unless that was set within the interval."""
    stale = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < now - interval)
    session.execute(update(ApiKey).where(ApiKey.id == key_id, stale).values(last_used_at=now))


def page(session: Session, after: tuple[datetime, str] | None, limit: int | None) -> Sequence[ApiKey]:
    """Keys, newest first, starting after ``after``."""
    query = select(ApiKey).order_by(ApiKey.created_at.desc(), ApiKey.id.desc()).limit(limit)
    if after is not None:
        query = query.where(tuple_(ApiKey.created_at, ApiKey.id) < after)
    return session.scalars(query).all()


def owner(session: Session, name: str) -> Owner | None:
    return session.scalars(select(Owner).where(Owner.name == name)).one_or_none()


def owner_in_any_case(session: Session, name: str) -> Owner | None:
    """An owner whose name differs from ``name``, which is ASCII, only in case, or not at all."""
    return session.scalars(select(Owner).where(func.lower(Owner.name) == name.lower()).limit(1)).one_or_none()


def owners(session: Session, after: str | None, limit: int) -> Sequence[Owner]:
    """Owners sorted by name, starting after ``after``."""
    query = select(Owner).order_by(Owner.name).limit(limit)
    return session.scalars(query if after is None else query.where(Owner.name > after)).all()


def device_seconds(session: Session, owner_id: str, since: date) -> float:
    """Total duration of the attempts that ended since then."""
    query = select(func.sum(DeviceTime.seconds)).where(
        DeviceTime.owner_id == owner_id, DeviceTime.day >= since
    )
    return session.scalar(query) or 0.0
