"""Queries about webhooks and deliveries. On a request's session they see the owner's rows alone."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import delete, exists, func, select, tuple_, update
from sqlalchemy.orm import Session, selectinload

from app.core.database import utcnow
from app.tables.webhooks import DELIVERED, FAILED, PENDING, Delivery, DeliveryAttempt, SweepEnding, Webhook
from app.webhooks.events import PING

BATCH = 200


def get(session: Session, webhook_id: str) -> Webhook | None:
    return session.scalars(select(Webhook).where(Webhook.id == webhook_id)).one_or_none()


def lock(session: Session, webhook_id: str) -> Webhook | None:
    """The row, locked until the transaction ends."""
    return session.scalars(select(Webhook).where(Webhook.id == webhook_id).with_for_update()).one_or_none()


def count(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(Webhook)) or 0


def page(session: Session, after: tuple[datetime, str] | None, limit: int) -> Sequence[Webhook]:
    """At most ``limit`` webhooks behind ``after``, the newest first."""
    query = select(Webhook)
    if after is not None:
        query = query.where(tuple_(Webhook.created_at, Webhook.id) < after)
    return session.scalars(query.order_by(Webhook.created_at.desc(), Webhook.id.desc()).limit(limit)).all()


def deliveries(
    session: Session, webhook_id: str, status: str | None, after: tuple[datetime, str] | None, limit: int
) -> Sequence[Delivery]:
    """At most ``limit`` deliveries of a webhook behind ``after``, the newest first, with their attempts."""
    query = select(Delivery).where(Delivery.webhook_id == webhook_id)
    if status is not None:
        query = query.where(Delivery.status == status)
    if after is not None:
        query = query.where(tuple_(Delivery.created_at, Delivery.id) < after)
    query = query.order_by(Delivery.created_at.desc(), Delivery.id.desc()).limit(limit)
    return session.scalars(query.options(selectinload(Delivery.tries))).all()


def one_delivery(session: Session, webhook_id: str, delivery_id: str) -> Delivery | None:
    """A delivery with its attempts, of a webhook that was found on the same session."""
    query = select(Delivery).where(Delivery.id == delivery_id, Delivery.webhook_id == webhook_id)
    query = query.options(selectinload(Delivery.tries)).execution_options(populate_existing=True)
    return session.scalars(query).one_or_none()


# What the sender does, on sessions that see all


def waiting(session: Session) -> list[tuple[str, str, bool]]:
    """Webhooks with something to send by now: id, owner, and whether their receiver was failing lately."""
    due = exists().where(
        Delivery.webhook_id == Webhook.id, Delivery.status == PENDING, Delivery.due_at <= utcnow()
    )
    rows = session.execute(select(Webhook.id, Webhook.owner_id, Webhook.failing_since).where(due))
    return [(row[0], row[1], row[2] is not None) for row in rows]


def claim(session: Session, webhook_id: str, seconds: float) -> Delivery | None:
    """Take the delivery that has been due longest, and note the attempt. Nobody else takes it for so many seconds."""
    now = utcnow()
    query = select(Delivery).where(
        Delivery.webhook_id == webhook_id, Delivery.status == PENDING, Delivery.due_at <= now
    )
    query = query.order_by(Delivery.due_at, Delivery.id).limit(1).with_for_update(skip_locked=True)
    row = session.scalars(query).one_or_none()
    if row is None:
        return None
    row.attempts += 1
    row.tried_since = row.tried_since or now
    row.due_at = now + timedelta(seconds=seconds)
    session.add(DeliveryAttempt(delivery_id=row.id, number=row.attempts, at=now))
    return row


def held(session: Session, delivery_id: str, attempt: int) -> Delivery | None:
    """The row, locked, if it is still this attempt's."""
    query = select(Delivery).where(Delivery.id == delivery_id).with_for_update()
    row = session.scalars(query).one_or_none()
    return row if row is not None and (row.status, row.attempts) == (PENDING, attempt) else None


def end(row: Delivery, *, delivered: bool, reason: str | None = None) -> None:
    """A delivery is tried no more."""
    row.status, row.reason, row.ended_at = DELIVERED if delivered else FAILED, reason, utcnow()


def disable(session: Session, webhook: Webhook, reason: str) -> None:
    """Send nothing more to a locked webhook, also not what waits."""
    webhook.disabled_at, webhook.disabled_reason = utcnow(), reason
    session.execute(
        update(Delivery)
        .where(Delivery.webhook_id == webhook.id, Delivery.status == PENDING, Delivery.type != PING)
        .values(status=FAILED, reason="the webhook was disabled", ended_at=utcnow())
        .execution_options(synchronize_session=False)
    )


def perhaps_finished(session: Session) -> Sequence[str]:
    """Sweeps and studies of which something has ended."""
    return session.scalars(select(SweepEnding.sweep_id).distinct().limit(BATCH)).all()


def endings(session: Session, sweep_id: str) -> Sequence[int]:
    """Some of a sweep's."""
    return session.scalars(select(SweepEnding.id).where(SweepEnding.sweep_id == sweep_id).limit(BATCH)).all()


def forget_endings(session: Session, sweep_id: str, ids: Sequence[int] | None = None) -> None:
    """These have been looked at; None: all of the sweep's."""
    query = delete(SweepEnding).where(SweepEnding.sweep_id == sweep_id)
    session.execute(query if ids is None else query.where(SweepEnding.id.in_(ids)))


def purge(session: Session, older_than: timedelta) -> None:
    """Delete deliveries that ended long ago."""
    session.execute(delete(Delivery).where(Delivery.ended_at < utcnow() - older_than))
