"""Operations on webhooks. Every function has committed when it returns."""

import asyncio
import re
import time
from collections.abc import Sequence
from datetime import timedelta

import httpx2
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session

from app.core.context import Context
from app.core.database import database_now, utcnow
from app.core.errors import ConflictError, InvalidError, UnavailableError, require
from app.core.pagination import paginate_by_age
from app.settings import Settings
from app.tables.webhooks import PENDING, Delivery, Webhook
from app.team.quotas import admit_webhook
from app.webhooks import outbox, repository
from app.webhooks.addresses import literal, refusal
from app.webhooks.events import PING
from app.webhooks.schemas import WebhookChange, WebhookRequest
from app.webhooks.signing import Keys

OVERLAP = timedelta(hours=24)
"""For how long after a rotation the previous secret also signs."""
TEST_SLACK_SECONDS = 5.0
POLL_SECONDS = 0.1
HOST = re.compile(rb"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*|([A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?")


def create(context: Context, request: WebhookRequest) -> tuple[Webhook, str]:
    """A new webhook and its secret. Raises InvalidError, TooManyError."""
    _check_url(request.url, context.settings)
    new = Keys(context.settings).new()
    row = Webhook(
        url=request.url,
        name=request.name,
        events=sorted(set(request.events)),
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
        return _require_webhook(session, webhook_id)


def list_webhooks(context: Context, cursor: str | None, limit: int) -> tuple[Sequence[Webhook], str | None]:
    """One page, newest first, and the cursor of the next page. Raises BadRequestError."""
    with context.database.reading() as session:
        return paginate_by_age(
            context.signer,
            "webhooks",
            cursor,
            limit,
            lambda after, most: repository.list_webhooks(session, after, most),
        )


def change(context: Context, webhook_id: str, request: WebhookChange) -> Webhook:
    """Raises InvalidError, NotFoundError."""
    if request.url is not None:
        _check_url(request.url, context.settings)
    with context.database.writing() as session:
        row = _require_webhook(session, webhook_id, lock=True)
        row.url = row.url if request.url is None else request.url
        row.name = row.name if request.name is None else request.name
        row.events = row.events if request.events is None else sorted(set(request.events))
        if request.enabled:
            row.disabled_at = row.disabled_reason = row.failing_since = None
        elif request.enabled is False and row.disabled_at is None:
            repository.disable(session, row, "disabled by its owner")
    return row


def rotate(context: Context, webhook_id: str) -> tuple[Webhook, str]:
    """A new secret. The current one also signs for a day, the previous one no longer. Raises NotFoundError."""
    keys = Keys(context.settings)
    new = keys.new()
    with context.database.writing() as session:
        row = _require_webhook(session, webhook_id, lock=True)
        # If the service's secret has changed, the receiver does not know the current secret.
        valid = keys.fits(row.salt, row.digest)
        row.previous_salt, row.previous_until = (row.salt, utcnow() + OVERLAP) if valid else (None, None)
        row.salt, row.digest = new.salt, new.digest
    return row, new.secret


def remove(context: Context, webhook_id: str) -> None:
    """Delete a webhook with its deliveries. Raises NotFoundError."""
    with context.database.writing() as session:
        session.delete(_require_webhook(session, webhook_id, lock=True))


async def send_ping(context: Context, webhook_id: str) -> Delivery:
    """Send a ping once and wait until it is finished.

    Raises NotFoundError, and UnavailableError if the relay does not send it in time.
    """
    delivery_id = await run_in_threadpool(_add_ping, context, webhook_id)
    settings = context.settings
    deadline = time.monotonic() + 2 * settings.relay_seconds + settings.webhook_timeout + TEST_SLACK_SECONDS
    while time.monotonic() < deadline:
        row = await run_in_threadpool(get_delivery, context, webhook_id, delivery_id)
        if row.status != PENDING:
            return row
        await asyncio.sleep(POLL_SECONDS)
    await run_in_threadpool(_cancel_ping, context, webhook_id, delivery_id)
    raise UnavailableError("the ping was not sent in time; the relay, which sends it, does not seem to run")


def list_deliveries(
    context: Context, webhook_id: str, status: str | None, cursor: str | None, limit: int
) -> tuple[Sequence[Delivery], str | None]:
    """One page of deliveries, newest first, and the cursor of the next page.

    Raises BadRequestError, NotFoundError.
    """
    with context.database.reading() as session:
        _require_webhook(session, webhook_id)
        return paginate_by_age(
            context.signer,
            f"deliveries {webhook_id} {status}",
            cursor,
            limit,
            lambda after, most: repository.list_deliveries(session, webhook_id, status, after, most),
        )


def get_delivery(context: Context, webhook_id: str, delivery_id: str) -> Delivery:
    """Raises NotFoundError."""
    with context.database.reading() as session:
        _require_webhook(session, webhook_id)
        return require(repository.get_delivery(session, webhook_id, delivery_id), "delivery", delivery_id)


def redeliver(context: Context, webhook_id: str, delivery_id: str) -> Delivery:
    """Send a delivery now under the same id, and retry it for as long as a new one.

    Raises NotFoundError, and ConflictError while the webhook is disabled.
    """
    with context.database.writing() as session:
        webhook = _require_webhook(session, webhook_id, lock=True)
        row = require(repository.get_delivery(session, webhook_id, delivery_id), "delivery", delivery_id)
        if webhook.disabled_at is not None and row.type != PING:
            raise ConflictError(
                f"the webhook is disabled: {webhook.disabled_reason}; first enable it with PATCH"
            )
        row.status, row.reason, row.ended_at, row.tried_since = PENDING, None, None, None
        row.due_at = database_now(session)
        return row


def _add_ping(context: Context, webhook_id: str) -> str:
    with context.database.writing() as session:
        _require_webhook(session, webhook_id)
        row = outbox.delivery(webhook_id, PING, outbox.message(PING, {"webhook_id": webhook_id}))
        session.add(row)
        session.flush()
        return row.id


def _cancel_ping(context: Context, webhook_id: str, delivery_id: str) -> None:
    with context.database.writing() as session:
        row = repository.get_delivery(session, webhook_id, delivery_id)
        if row is not None and row.status == PENDING:
            repository.finish(row, delivered=False, reason="not sent in time")


def _check_url(text: str, settings: Settings) -> None:
    """Raises InvalidError. The addresses of the host's name are checked whenever something is sent."""
    try:
        url = httpx2.URL(text)
    except (httpx2.InvalidURL, UnicodeError) as error:
        raise InvalidError.of("url", text, str(error)) from error
    if url.scheme != "https" or not HOST.fullmatch(url.raw_host) or not 0 < (url.port or 443) < 2**16:
        raise InvalidError.of("url", text, "allowed: an https URL")
    if url.userinfo or url.fragment:
        raise InvalidError.of("url", text, "allowed: a URL without user, password and fragment")
    for address in literal(url.host):
        if reason := refusal(address, private=settings.webhook_private):
            message = f"{url.host} is {reason}; webhooks require a public address"
            raise InvalidError.of("url", text, message)


def _require_webhook(session: Session, webhook_id: str, *, lock: bool = False) -> Webhook:
    return require(repository.get_webhook(session, webhook_id, lock=lock), "webhook", webhook_id)
