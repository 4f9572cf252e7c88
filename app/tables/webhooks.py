"""Tables of webhooks and of what is sent to them."""

from datetime import datetime

from sqlalchemy import ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.core.database import Base, BigId, Json, UtcDateTime, new_id
from app.tables.owners import Owned, owned_index

PENDING, DELIVERED, FAILED = "pending", "delivered", "failed"


class Webhook(Owned, Base):
    """A receiver. Its secret is not here: it follows from ``salt`` and the service's own secret (`signing`), and
    ``digest`` tells whether it still does."""

    __tablename__ = "webhooks"
    __table_args__ = (owned_index("ix_webhooks_created", "created_at", "id"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    url: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(String(200))
    events: Mapped[list[str]] = mapped_column(Json)
    salt: Mapped[str] = mapped_column(String(64))
    digest: Mapped[str] = mapped_column(String(64))
    previous_salt: Mapped[str | None] = mapped_column(String(64))
    previous_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    disabled_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    disabled_reason: Mapped[str | None] = mapped_column(Text)
    failing_since: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_success_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Delivery(Base):
    """One event for one receiver, written in the transaction in which it happened; ``id`` is its webhook-id.

    A pending one is sent when ``due_at`` has come. ``attempts`` is the fencing token of whoever sends it, and taking
    it moves ``due_at`` to when it may be taken from a sender that died. ``tried_since`` is when trying began.
    """

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index("ix_webhook_deliveries_due", "webhook_id", "status", "due_at"),
        Index("ix_webhook_deliveries_created", "webhook_id", "created_at", "id"),
        Index("ix_webhook_deliveries_ended", "ended_at"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    type: Mapped[str] = mapped_column(String(64))
    body: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(String(16), default=PENDING)
    reason: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    due_at: Mapped[datetime] = mapped_column(UtcDateTime)
    tried_since: Mapped[datetime | None] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    attempts: Mapped[int] = mapped_column(default=0)

    tries: Mapped[list["DeliveryAttempt"]] = relationship(
        cascade="all, delete-orphan", passive_deletes=True, order_by="DeliveryAttempt.number"
    )


class DeliveryAttempt(Base):
    """One request, written before it is sent. ``seconds`` is null until its outcome is known."""

    __tablename__ = "webhook_attempts"

    delivery_id: Mapped[str] = mapped_column(
        ForeignKey("webhook_deliveries.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    seconds: Mapped[float | None]
    status_code: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(Text)
    response: Mapped[str | None] = mapped_column(Text)


class SweepEnding(Base):
    """An experiment of this sweep or study has ended or is gone, perhaps the last one: the sender looks, since only
    after the commit does anybody see what all the others have become.

    There is no foreign key: it would have whoever ends an experiment wait for whoever holds the sweep, and waits for
    the experiment."""

    __tablename__ = "sweep_endings"

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    sweep_id: Mapped[str] = mapped_column(String(36), index=True)
