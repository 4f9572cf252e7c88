"""The audit log. Database triggers, created by migrations, reject every update, and the deletion of recent entries."""

from datetime import datetime

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base, BigId, UtcDateTime


class AuditEntry(Base):
    """One request: sender, route, time and outcome. It refers to no other row, so it does not change with any."""

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
