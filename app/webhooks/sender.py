"""Sends deliveries, in a thread of the relay's process, so that slow receivers do not delay experiments.

A receiver gets one request at a time from a relay, and an owner uses only some of the threads, so nobody waits for the
receivers of others longer than one request takes. A delivery is claimed before it is sent, and its outcome is written
afterwards. If the sender is killed in between, the claim expires and the receiver gets the same webhook-id again.
"""

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from structlog.contextvars import bound_contextvars

from app.core import metrics
from app.core.database import Database, database_now, utcnow
from app.settings import Settings
from app.tables.webhooks import Delivery, DeliveryAttempt, Webhook
from app.webhooks import repository, signing
from app.webhooks.events import PING
from app.webhooks.transport import Outcome, Transport

log = logging.getLogger(__name__)
THREADS, THREADS_PER_OWNER = 16, 4
SLICE_SECONDS = 5.0
"""After this time a thread leaves a receiver that has more due deliveries, and others get a chance."""
FIRST_PAUSE, GROWTH, LONGEST_PAUSE = 5.0, 4.0, 4 * 3600.0
LONGEST_RETRY_AFTER = 3600.0
"""Up to which value a receiver's Retry-After is followed."""
GONE = 410
RETENTION = timedelta(days=30)
PURGE_SECONDS = 600.0
LONGEST_BACKOFF = 30.0


class Sender:
    """Sends the deliveries that are due. ``before_round`` is called with the database before each round."""

    def __init__(self, settings: Settings, before_round: Callable[[Database], None]) -> None:
        self._settings = settings
        self._before_round = before_round
        self._database = Database(settings.database)
        self._keys = signing.Keys(settings)
        self._transport = Transport(settings.webhook_timeout, private=settings.webhook_private)
        self._threads = ThreadPoolExecutor(THREADS, "webhooks")
        self._jobs: dict[str, tuple[str, Future[None]]] = {}
        """By the id of the webhook: its owner, and the job that sends its deliveries."""
        self._purged = 0.0

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop`` is set. While the database is unavailable, retry with backoff."""
        failures = 0
        while not stop.is_set():
            try:
                self.step()
                failures = 0
            except SQLAlchemyError as error:
                failures += 1
                log.warning("webhooks cannot be sent (failure %d): %s", failures, _first_line(error))
            except Exception:  # this thread must not end before the relay
                failures += 1
                log.exception("webhooks cannot be sent (failure %d)", failures)
            stop.wait(min(LONGEST_BACKOFF, self._settings.relay_seconds * 2 ** min(failures, 10)))
        self.close()

    def step(self) -> None:
        """Start sending what is due, as far as threads are free."""
        self._before_round(self._database)
        self._jobs = {name: (owner, job) for name, (owner, job) in self._jobs.items() if not job.done()}
        with self._database.reading() as session:
            due = repository.webhooks_with_due_deliveries(session)
        threads = Counter(owner for owner, _ in self._jobs.values())
        # Receivers that did not fail come first; the order among equals is random, so that none is always last.
        for webhook_id, owner_id, _ in sorted(due, key=lambda webhook: (webhook[2], random.random())):
            if webhook_id in self._jobs or threads[owner_id] >= THREADS_PER_OWNER:
                continue
            if len(self._jobs) >= THREADS:
                break
            self._jobs[webhook_id] = (owner_id, self._threads.submit(self._send_due, webhook_id))
            threads[owner_id] += 1
        if time.monotonic() - self._purged >= PURGE_SECONDS:
            with self._database.writing() as session:
                repository.delete_old_deliveries(session, RETENTION)
            self._purged = time.monotonic()

    def close(self) -> None:
        """Wait for the current requests."""
        self._threads.shutdown(cancel_futures=True)
        self._database.close()

    def _send_due(self, webhook_id: str) -> None:
        """Send the due deliveries of a webhook, oldest first, until one fails or the time slice ends."""
        began = time.monotonic()
        try:
            while time.monotonic() - began < SLICE_SECONDS and self._send_next(webhook_id):
                pass
        except SQLAlchemyError as error:
            log.warning("webhook %s is delayed: %s", webhook_id, _first_line(error))
        except Exception:
            log.exception("webhook %s: sending a delivery failed", webhook_id)

    def _send_next(self, webhook_id: str) -> bool:
        """Whether a delivery was due and is finished successfully."""
        with self._database.writing() as session:
            webhook = repository.get_webhook(session, webhook_id)
            delivery = repository.claim_next_delivery(session, webhook_id, 2 * self._settings.webhook_timeout)
            if webhook is None or delivery is None:
                return False
            if webhook.disabled_at is not None and delivery.type != PING:
                repository.finish(delivery, delivered=False, reason="the webhook was disabled")
                return True
        with bound_contextvars(owner_id=webhook.owner_id, webhook_id=webhook_id, delivery_id=delivery.id):
            outcome = self._send(webhook, delivery)
            details = {"event_type": delivery.type, "seconds": round(outcome.seconds, 3)}
            log.info("delivery attempt: %s", outcome, extra=details)
        metrics.DELIVERIES.labels("arrived" if outcome.good else "failed").inc()
        with self._database.writing() as session:
            record(session, delivery, outcome, self._settings.webhook_retry_seconds)
        return outcome.good

    def _send(self, webhook: Webhook, delivery: Delivery) -> Outcome:
        if not self._keys.fits(webhook.salt, webhook.digest):
            return Outcome(0.0, error="the service's secret has changed; rotate the secret of the webhook")
        secrets = [self._keys.secret(webhook.salt)]
        if webhook.previous_salt and webhook.previous_until and webhook.previous_until > utcnow():
            secrets.append(self._keys.secret(webhook.previous_salt))
        body = delivery.body.encode()
        headers = signing.headers(secrets, delivery.id, int(time.time()), body)
        return self._transport.post(webhook.url, headers, body)


def record(session: Session, delivery: Delivery, outcome: Outcome, retry_seconds: float) -> None:
    """Write the outcome of an attempt, and retry, finish the delivery or disable the webhook accordingly."""
    webhook = repository.get_webhook(session, delivery.webhook_id, lock=True)
    attempt = session.get(DeliveryAttempt, (delivery.id, delivery.attempts))
    if webhook is None or attempt is None:  # deleted in the meantime
        return
    attempt.seconds, attempt.status_code = round(outcome.seconds, 3), outcome.status
    attempt.error, attempt.response = outcome.error, outcome.response
    now = database_now(session)
    ping = delivery.type == PING
    if outcome.good:
        webhook.failing_since, webhook.last_success_at = None, now
    elif not ping:
        webhook.failing_since = webhook.failing_since or now
    row = repository.lock_claimed(session, delivery.id, delivery.attempts)
    if row is None:  # the claim expired, and another sender has claimed it
        return
    since = row.tried_since or now
    pause = backoff(row.attempts, outcome.retry_after)
    if outcome.good or ping:
        repository.finish(row, delivered=outcome.good, reason=None if outcome.good else str(outcome))
    elif outcome.status == GONE:
        repository.finish(row, delivered=False, reason=str(outcome))
        _disable(session, webhook, "the receiver answered 410 (Gone)")
    elif now + timedelta(seconds=pause) > since + timedelta(seconds=retry_seconds):
        repository.finish(row, delivered=False, reason=f"given up after {row.attempts} attempts: {outcome}")
        if webhook.last_success_at is None or webhook.last_success_at < since:
            time_text = since.isoformat(timespec="seconds")
            _disable(session, webhook, f"no delivery succeeded since {time_text}: {outcome}")
    else:
        row.due_at = now + timedelta(seconds=pause)


def backoff(attempts: int, retry_after: float | None) -> float:
    """Seconds until the next attempt: exponential with jitter, and at least the receiver's Retry-After."""
    pause = min(LONGEST_PAUSE, FIRST_PAUSE * GROWTH ** min(attempts - 1, 10)) * random.uniform(0.5, 1.5)
    return max(pause, min(retry_after or 0.0, LONGEST_RETRY_AFTER))


def _disable(session: Session, webhook: Webhook, reason: str) -> None:
    repository.disable(session, webhook, reason)
    log.warning("webhook %s was disabled: %s", webhook.id, reason)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
