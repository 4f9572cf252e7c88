"""What can be done with webhooks. Every function has committed when it returns."""

import asyncio
import json
import re
import time
from collections.abc import Sequence
from datetime import datetime, timedelta

import httpx2
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session

from app.core import pagination
from app.core.context import Context
from app.core.database import utcnow
from app.core.errors import ConflictError, InvalidError, NotFoundError, UnavailableError, summary
from app.core.validation import FieldError, shown
from app.settings import Settings
from app.tables.webhooks import PENDING, Delivery, Webhook
from app.team.quotas import admit_webhook
from app.webhooks import outbox, repository
from app.webhooks.addresses import literal, refusal
from app.webhooks.events import PING
from app.webhooks.schemas import WebhookChange, WebhookRequest
from app.webhooks.signing import Keys

OVERLAP = timedelta(hours=24)
"""How long the secret from before a rotation still signs too."""
TEST_SLACK_SECONDS = 5.0
POLL_SECONDS = 0.1
HOST = re.compile(rb"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*|([A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?")


def create(context: Context, asked: WebhookRequest) -> tuple[Webhook, str]:
    """A new webhook, and its secret. Raises InvalidError, TooManyError."""
    _check(asked.url, context.settings)
    new = Keys(context.settings).new()
    row = Webhook(
        url=asked.url,
        name=asked.name,
        events=_in_order(asked.events),
        salt=new.salt,
        digest=new.digest,
        created_at=utcnow(),
    )
    with context.database.writing() as session:
        admit_webhook(session)
        session.add(row)
    return row, new.secret


def get(context: Context, webhook_id: str) -> Webhook:
    """Raises NotFoundError."""
    with context.database.reading() as session:
        return _found(repository.get(session, webhook_id), webhook_id)


def listing(context: Context, cursor: str | None, limit: int) -> tuple[list[Webhook], str | None]:
    """One page, the newest first, and the next one's cursor if there is one. Raises BadRequestError."""
    after = _position(context, "webhooks", cursor)
    with context.database.reading() as session:
        rows = list(repository.page(session, after, limit + 1))
    return rows[:limit], _next(context, "webhooks", rows, limit)


def change(context: Context, webhook_id: str, asked: WebhookChange) -> Webhook:
    """Raises InvalidError, NotFoundError."""
    if asked.url is not None:
        _check(asked.url, context.settings)
    with context.database.writing() as session:
        row = _found(repository.lock(session, webhook_id), webhook_id)
        row.url = row.url if asked.url is None else asked.url
        row.name = row.name if asked.name is None else asked.name
        row.events = row.events if asked.events is None else _in_order(asked.events)
        if asked.enabled:
            row.disabled_at = row.disabled_reason = row.failing_since = None
        elif asked.enabled is False and row.disabled_at is None:
            repository.disable(session, row, "disabled by its owner")
    return row


def rotate(context: Context, webhook_id: str) -> tuple[Webhook, str]:
    """A new secret; the one before signs too for a day, and the one before that no more. Raises NotFoundError."""
    keys = Keys(context.settings)
    new = keys.new()
    with context.database.writing() as session:
        row = _found(repository.lock(session, webhook_id), webhook_id)
        # A secret that the receiver was never given, because ours has changed, is of no use to it.
        known = keys.fits(row.salt, row.digest)
        row.previous_salt, row.previous_until = (row.salt, utcnow() + OVERLAP) if known else (None, None)
        row.salt, row.digest = new.salt, new.digest
    return row, new.secret


def remove(context: Context, webhook_id: str) -> None:
    """Delete a webhook, what waits for it, and its log. Raises NotFoundError."""
    with context.database.writing() as session:
        session.delete(_found(repository.lock(session, webhook_id), webhook_id))


async def test(context: Context, webhook_id: str) -> Delivery:
    """Send a ping, which is tried once, and wait for what comes of it.

    Raises NotFoundError, and UnavailableError if the relay does not send it in time.
    """
    delivery_id = await run_in_threadpool(_ping, context, webhook_id)
    settings = context.settings
    until = time.monotonic() + 2 * settings.relay_seconds + settings.webhook_timeout + TEST_SLACK_SECONDS
    while time.monotonic() < until:
        row = await run_in_threadpool(delivery, context, webhook_id, delivery_id)
        if row.status != PENDING:
            return row
        await asyncio.sleep(POLL_SECONDS)
    await run_in_threadpool(_give_up, context, webhook_id, delivery_id)
    raise UnavailableError("nobody sent the ping in time; the relay sends it, and does not seem to run")


def deliveries(
    context: Context, webhook_id: str, status: str | None, cursor: str | None, limit: int
) -> tuple[list[Delivery], str | None]:
    """One page of the log, the newest first, and the next one's cursor. Raises BadRequestError, NotFoundError."""
    query = f"deliveries {webhook_id} {status}"
    after = _position(context, query, cursor)
    with context.database.reading() as session:
        _found(repository.get(session, webhook_id), webhook_id)
        rows = list(repository.deliveries(session, webhook_id, status, after, limit + 1))
    return rows[:limit], _next(context, query, rows, limit)


def delivery(context: Context, webhook_id: str, delivery_id: str) -> Delivery:
    """Raises NotFoundError."""
    with context.database.reading() as session:
        _found(repository.get(session, webhook_id), webhook_id)
        return _found_delivery(session, webhook_id, delivery_id)


def redeliver(context: Context, webhook_id: str, delivery_id: str) -> Delivery:
    """Send it (again), at once and under the same id, and try it for as long as a new one.

    Raises NotFoundError, and ConflictError while the webhook is disabled.
    """
    with context.database.writing() as session:
        webhook = _found(repository.lock(session, webhook_id), webhook_id)
        row = _found_delivery(session, webhook_id, delivery_id)
        if webhook.disabled_at is not None and row.type != PING:
            raise ConflictError(
                f"the webhook is disabled: {webhook.disabled_reason}; first PATCH it with enabled true"
            )
        row.status, row.reason, row.ended_at, row.tried_since = PENDING, None, None, None
        row.due_at = utcnow()
        return row


def _ping(context: Context, webhook_id: str) -> str:
    with context.database.writing() as session:
        webhook = _found(repository.get(session, webhook_id), webhook_id)
        row = outbox.delivery(webhook_id, PING, outbox.message(PING, {"webhook_id": webhook.id}))
        session.add(row)
        session.flush()
        return row.id


def _give_up(context: Context, webhook_id: str, delivery_id: str) -> None:
    with context.database.writing() as session:
        row = repository.one_delivery(session, webhook_id, delivery_id)
        if row is not None and row.status == PENDING:
            repository.end(row, delivered=False, reason="nobody sent it in time")


def _check(text: str, settings: Settings) -> None:
    """Whether this may be a receiver. Where its name leads to is looked at each time that something is sent."""
    try:
        url = httpx2.URL(text)
    except (httpx2.InvalidURL, UnicodeError) as error:
        raise _fault(text, str(error)) from error
    if url.scheme != "https" or not HOST.fullmatch(url.raw_host) or not 0 < (url.port or 443) < 2**16:
        raise _fault(text, "allowed: an https URL")
    if url.userinfo or url.fragment:
        raise _fault(text, "allowed: a URL without user, password and fragment")
    for address in literal(url.host):
        if why := refusal(address, private=settings.webhook_private):
            raise _fault(text, f"{url.host} is {why}; webhooks go to public addresses alone")


def _fault(url: str, message: str) -> InvalidError:
    fault = FieldError(field="url", value=shown(url), message=message)
    return InvalidError(summary([fault]), [fault])


def _in_order(events: Sequence[str]) -> list[str]:
    return sorted(set(events))


def _found(webhook: Webhook | None, webhook_id: str) -> Webhook:
    if webhook is None:
        raise NotFoundError(f"there is no webhook {shown(webhook_id)}")
    return webhook


def _found_delivery(session: Session, webhook_id: str, delivery_id: str) -> Delivery:
    row = repository.one_delivery(session, webhook_id, delivery_id)
    if row is None:
        raise NotFoundError(f"there is no delivery {shown(delivery_id)} of this webhook")
    return row


def _position(context: Context, query: str, cursor: str | None) -> tuple[datetime, str] | None:
    if cursor is None:
        return None
    created_at, last_id = pagination.decode(context.signer, query, cursor)
    return datetime.fromisoformat(created_at), last_id


def _next(context: Context, query: str, rows: list[Webhook] | list[Delivery], limit: int) -> str | None:
    if len(rows) <= limit:
        return None
    last = rows[limit - 1]
    return pagination.encode(context.signer, query, [last.created_at.isoformat(), last.id])


def payload(row: Delivery) -> dict[str, object]:
    """What is sent, as JSON."""
    found: dict[str, object] = json.loads(row.body)
    return found
