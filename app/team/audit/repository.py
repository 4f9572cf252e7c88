"""Queries about the audit log. There is none that changes it, and the database would refuse one."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.tables.audit import AuditEntry


def page(session: Session, owner: str | None, before: int | None, limit: int) -> Sequence[AuditEntry]:
    """Entries, the newest first; None is any owner, and the newest."""
    query = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit)
    if owner is not None:
        query = query.where(AuditEntry.owner == owner)
    if before is not None:
        query = query.where(AuditEntry.id < before)
    return session.scalars(query).all()
