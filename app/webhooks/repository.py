"""Queries about webhooks and deliveries. On the session of a request they see only the owner's rows."""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import delete, exists, select, tuple_, update
from sqlalchemy.orm import Session, selectinload

from app.core.database import database_now, from_now, utcnow
from app.core.pagination import ByAge
from app.tables.webhooks import DELIVERED, FAILED, PENDING, Delivery, DeliveryAttempt, SweepEnding, Webhook
from app.webhooks.events import PING

BATCH = 200


def get_webhook(session: Session, webhook_id: str, *, lock: bool = False) -> Webhook | None:
    query = select(Webhook).where(Webhook.id == webhook_id)
    return session.scalars(query.with_for_update() if lock else query).one_or_none()


def list_webhooks(session: Session, after: ByAge | None, limit: int) -> Sequence[Webhook]:
    """Webhooks, newest first, starting after ``after``."""
    query = select(Webhook)
    if after is not None:
        query = query.where(tuple_(Webhook.created_at, Webhook.id) < after)
    return session.scalars(query.order_by(Webhook.created_at.desc(), Webhook.id.desc()).limit(limit)).all()


def list_deliveries(
    session: Session, webhook_id: str, status: str | None, after: ByAge | None, limit: int
) -> Sequence[Delivery]:
    """Deliveries of a webhook with their attempts, newest first, starting after ``after``."""
    query = select(Delivery).where(Delivery.webhook_id == webhook_id)
    if status is not None:
        query = query.where(Delivery.status == status)
    if after is not None:
        query = query.where(tuple_(Delivery.created_at, Delivery.id) < after)
    query = query.order_by(Delivery.created_at.desc(), Delivery.id.desc()).limit(limit)
    return session.scalars(query.options(selectinload(Delivery.tries))).all()


def get_delivery(session: Session, webhook_id: str, delivery_id: str) -> Delivery | None:
    """A delivery with its attempts. Deliveries have no owner: get the webhook on the same session first."""
    query = select(Delivery).where(Delivery.id == delivery_id, Delivery.webhook_id == webhook_id)
    query = query.options(selectinload(Delivery.tries)).execution_options(populate_existing=True)
    return session.scalars(query).one_or_none()


# For the sender, on sessions that are not filtered by owner


def webhooks_with_due_deliveries(session: Session) -> list[tuple[str, str, bool]]:
    """(webhook id, owner id, whether the last delivery failed) of each webhook with due deliveries."""
    due = exists().where(
        Delivery.webhook_id == Webhook.id, Delivery.status == PENDING, Delivery.due_at <= from_now()
    )
    rows = session.execute(select(Webhook.id, Webhook.owner_id, Webhook.failing_since).where(due))
    return [(row[0], row[1], row[2] is not None) for row in rows]


def claim_next_delivery(session: Session, webhook_id: str, seconds: float) -> Delivery | None:
    """Claim the delivery that is due longest, for so many seconds, and insert the attempt."""
    now = database_now(session)
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


def lock_claimed(session: Session, delivery_id: str, attempt: int) -> Delivery | None:
    """The delivery, locked; None if another attempt has claimed it or it is finished."""
    query = select(Delivery).where(Delivery.id == delivery_id).with_for_update()
    row = session.scalars(query).one_or_none()
    return row if row is not None and (row.status, row.attempts) == (PENDING, attempt) else None


def finish(row: Delivery, *, delivered: bool, reason: str | None = None) -> None:
    """Mark a delivery as finished."""
    row.status, row.reason, row.ended_at = DELIVERED if delivered else FAILED, reason, utcnow()


def disable(session: Session, webhook: Webhook, reason: str) -> None:
    """Disable a locked webhook, whose pending deliveries fail."""
    webhook.disabled_at, webhook.disabled_reason = utcnow(), reason
    session.execute(
        update(Delivery)
        .where(Delivery.webhook_id == webhook.id, Delivery.status == PENDING, Delivery.type != PING)
        .values(status=FAILED, reason="the webhook was disabled", ended_at=utcnow())
        .execution_options(synchronize_session=False)
    )


def sweeps_to_check(session: Session) -> Sequence[str]:
    """Ids of sweeps and studies that may have finished."""
    return session.scalars(select(SweepEnding.sweep_id).distinct().limit(BATCH)).all()


def list_endings(session: Session, sweep_id: str) -> Sequence[int]:
    """Ids of at most `BATCH` of a sweep's endings."""
    return session.scalars(select(SweepEnding.id).where(SweepEnding.sweep_id == sweep_id).limit(BATCH)).all()


def delete_endings(session: Session, sweep_id: str, ids: Sequence[int] | None = None) -> None:
    """Delete endings that were checked; None: all of the sweep."""
    query = delete(SweepEnding).where(SweepEnding.sweep_id == sweep_id)
    session.execute(query if ids is None else query.where(SweepEnding.id.in_(ids)))


def delete_old_deliveries(session: Session, older_than: timedelta) -> None:
    """Delete deliveries that ended before this time."""
    session.execute(delete(Delivery).where(Delivery.ended_at < utcnow() - older_than))
