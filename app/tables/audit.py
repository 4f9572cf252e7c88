"""The audit log. Triggers of the database refuse every update and delete (the migration that makes it)."""

from datetime import datetime

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base, BigId, UtcDateTime


class AuditEntry(Base):
    """One request: who, what, when, and how it ended. Nothing refers to an owner's row, so that it stays true."""

    __tablename__ = "audit"
    __table_args__ = (Index("ix_audit_owner", "owner", "id"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    request_id: Mapped[str] = mapped_column(String(64))
    owner: Mapped[str] = mapped_column(String(100))
    key: Mapped[str | None] = mapped_column(String(16))
    client: Mapped[str] = mapped_column(String(64))
    method: Mapped[str] = mapped_column(String(10))
    route: Mapped[str] = mapped_column(String(200))
    path: Mapped[str] = mapped_column(String(300))
    status: Mapped[int]
    location: Mapped[str | None] = mapped_column(String(300))
