"""The table of uploads: models and datasets."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base, Json, UtcDateTime, new_id
from app.core.tracing import RequestOriginMixin
from app.tables.owners import Owned, owned_index

MODEL, DATASET = "model", "dataset"
PENDING, READY, REFUSED = "pending", "ready", "refused"


class Upload(RequestOriginMixin, Owned, Base):
    """A file and the result of its check. While it is pending, the row serves as its outbox: the relay sends a message
    when ``due_at`` is reached. ``attempts`` is the fencing token of the worker that checks it."""

    __tablename__ = "uploads"
    __table_args__ = (
        owned_index("ix_uploads_kind_created", "kind", "created_at", "id"),
        Index("ix_uploads_due", "status", "due_at"),
        UniqueConstraint("owner_id", "kind", "request_hash"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    kind: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(200))
    status: Mapped[str] = mapped_column(String(16), default=PENDING)
    reason: Mapped[str | None] = mapped_column(Text)
    size: Mapped[int] = mapped_column(BigInteger)
    """Of the file as it was sent."""
    stored_bytes: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """What is kept of it: the file, a dataset as it was converted, or nothing if it is refused."""
    sha256: Mapped[str] = mapped_column(String(64))
    request: Mapped[dict[str, Any]] = mapped_column(Json)
    """The metadata that its check needs."""
    request_hash: Mapped[str] = mapped_column(String(64))
    """Over the file and its metadata, so that sending both again finds the same upload."""
    facts: Mapped[dict[str, Any] | None] = mapped_column(Json)
    """The result of the check; null until it is ready."""
    version: Mapped[str] = mapped_column(String(64), default="")
    """The digest of a dataset's content, once it is ready."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    checked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    due_at: Mapped[datetime] = mapped_column(UtcDateTime)
    claimed_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    attempts: Mapped[int] = mapped_column(default=0)


def source_key(upload_id: str) -> str:
    """The object key of the file as it was sent."""
    return f"uploads/{upload_id}"


def dataset_key(upload_id: str) -> str:
    """The object key of a dataset in the format that workers load."""
    return f"uploads/{upload_id}.safetensors"
