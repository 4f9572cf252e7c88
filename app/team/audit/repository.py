"""Queries about the audit log. None changes an entry; triggers of the database would reject that."""

from collections.abc import Sequence

from sqlalchemy import select
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
