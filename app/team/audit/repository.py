"""Queries about the audit log. None changes an entry; triggers of the database would reject that."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from app.tables.audit import AuditEntry


def page(session: Session, owner: str | None, before: int | None, limit: int) -> Sequence[AuditEntry]:
    """Entries with an id less than ``before``, newest first; None is no filter."""
    query = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit)
    if owner is not None:
        query = query.where(AuditEntry.owner == owner)
    if before is not None:
        query = query.where(AuditEntry.id < before)
    return session.scalars(query).all()


def count_older(session: Session, than: datetime) -> int:
    """The number of entries from before a time."""
    return session.scalar(select(func.count()).where(AuditEntry.at < than)) or 0


def delete_older(session: Session, than: datetime, limit: int) -> int:
    """Delete at most ``limit`` entries from before a time. Returns their number."""
    # Ordered by id, in which entries are written, because the time has no index.
    oldest = select(AuditEntry.id).where(AuditEntry.at < than).order_by(AuditEntry.id).limit(limit)
    ids = session.scalars(oldest).all()
    if ids:
        session.execute(delete(AuditEntry).where(AuditEntry.id.in_(ids)))
    return len(ids)
