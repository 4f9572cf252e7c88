"""Sends deliveries, in a thread of the relay's process, so that a slow receiver never holds up an experiment.

Each receiver gets one request at a time from a relay, and each owner has only a few of the threads: nobody is kept
waiting by others' receivers for longer than one request may take. A delivery is claimed before it is sent, and what
came of it is written after that: a sender that is killed in between leaves a claim that runs out, and the receiver
gets the same webhook-id once more.
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
from app.core.database import Database, utcnow
from app.settings import Settings
from app.tables.webhooks import Delivery, DeliveryAttempt, Webhook
from app.webhooks import repository, signing
from app.webhooks.events import PING
from app.webhooks.sending import Outcome, Post

log = logging.getLogger(__name__)
THREADS, THREADS_OF_AN_OWNER = 16, 4
SLICE_SECONDS = 5.0
"""So long a thread stays with one receiver that has more to get."""
FIRST_PAUSE, GROWTH, LONGEST_PAUSE = 5.0, 4.0, 4 * 3600.0
LONGEST_ASKED_PAUSE = 3600.0
"""How far a receiver's Retry-After is followed."""
GONE = 410
KEPT = timedelta(days=30)
PURGE_SECONDS = 600.0
LONGEST_FAULT_PAUSE = 30.0


class Sender:
    """Sends the deliveries that are due. ``before_round`` is called with the database before each round."""

    def __init__(self, settings: Settings, before_round: Callable[[Database], None]) -> None:
        self._settings = settings
        self._before_round = before_round
        self._database = Database(settings.database)
        self._keys = signing.Keys(settings)
        self._post = Post(settings.webhook_timeout, private=settings.webhook_private)
        self._threads = ThreadPoolExecutor(THREADS, "webhooks")
        self._busy: dict[str, tuple[str, Future[None]]] = {}
        self._purged = 0.0

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop`` is set. While the database is down: log it, wait longer, go on."""
        faults = 0
        while not stop.is_set():
            try:
                self.step()
                faults = 0
            except SQLAlchemyError as error:
                faults += 1
                log.warning("webhooks cannot be sent, for the %d. time: %s", faults, _first_line(error))
            except Exception:  # this thread must not die while the relay lives
                faults += 1
                log.exception("webhooks cannot be sent, for the %d. time", faults)
            stop.wait(min(LONGEST_FAULT_PAUSE, self._settings.relay_seconds * 2 ** min(faults, 10)))
        self.close()

    def step(self) -> None:
        """Start sending what is due, as far as threads are free."""
        self._before_round(self._database)
        self._busy = {name: (owner, job) for name, (owner, job) in self._busy.items() if not job.done()}
        with self._database.reading() as session:
            waiting = repository.waiting(session)
        taken = Counter(owner for owner, _ in self._busy.values())
        # Receivers that answer come first, and among equals nobody always comes first.
        for webhook_id, owner_id, _ in sorted(waiting, key=lambda found: (found[2], random.random())):
            if webhook_id in self._busy or taken[owner_id] >= THREADS_OF_AN_OWNER:
                continue
            if len(self._busy) >= THREADS:
                break
            self._busy[webhook_id] = (owner_id, self._threads.submit(self._serve, webhook_id))
            taken[owner_id] += 1
        if time.monotonic() - self._purged >= PURGE_SECONDS:
            with self._database.writing() as session:
                repository.purge(session, KEPT)
            self._purged = time.monotonic()

    def close(self) -> None:
        """Wait for the requests that are under way."""
        self._threads.shutdown(cancel_futures=True)
        self._database.close()

    def _serve(self, webhook_id: str) -> None:
        """Send what a webhook is to get, the oldest first, until one fails or it is another's turn."""
        began = time.monotonic()
        try:
            while time.monotonic() - began < SLICE_SECONDS and self._send_one(webhook_id):
                pass
        except SQLAlchemyError as error:
            log.warning("webhook %s waits: %s", webhook_id, _first_line(error))
        except Exception:
            log.exception("webhook %s: a delivery broke", webhook_id)

    def _send_one(self, webhook_id: str) -> bool:
        """True if something was sent, and arrived."""
        with self._database.writing() as session:
            webhook = repository.get(session, webhook_id)
            delivery = repository.claim(session, webhook_id, 2 * self._settings.webhook_timeout)
            if webhook is None or delivery is None:
                return False
            if webhook.disabled_at is not None and delivery.type != PING:
                repository.end(delivery, delivered=False, reason="the webhook was disabled")
                return True
        with bound_contextvars(owner_id=webhook.owner_id, webhook_id=webhook_id, delivery_id=delivery.id):
            outcome = self._try(webhook, delivery)
            details = {"event_type": delivery.type, "seconds": round(outcome.seconds, 3)}
            log.info("delivery tried: %s", "it arrived" if outcome.good else outcome, extra=details)
        metrics.DELIVERIES.labels("arrived" if outcome.good else "failed").inc()
        with self._database.writing() as session:
            record(session, delivery, outcome, self._settings.webhook_retry_seconds)
        return outcome.good

    def _try(self, webhook: Webhook, delivery: Delivery) -> Outcome:
        if not self._keys.fits(webhook.salt, webhook.digest):
            return Outcome(
                0.0, error="the service's secret has changed; rotate the webhook's to get a new one"
            )
        given = [self._keys.secret(webhook.salt)]
        if webhook.previous_salt and webhook.previous_until and webhook.previous_until > utcnow():
            given.append(self._keys.secret(webhook.previous_salt))
        body = delivery.body.encode()
        return self._post(webhook.url, signing.headers(given, delivery.id, int(time.time()), body), body)


def record(session: Session, delivery: Delivery, outcome: Outcome, retry_seconds: float) -> None:
    """Write what came of an attempt, and what follows from it."""
    webhook = repository.lock(session, delivery.webhook_id)
    attempt = session.get(DeliveryAttempt, (delivery.id, delivery.attempts))
    if webhook is None or attempt is None:  # deleted meanwhile
        return
    attempt.seconds, attempt.status_code = round(outcome.seconds, 3), outcome.status
    attempt.error, attempt.response = outcome.error, outcome.response
    now = utcnow()
    ping = delivery.type == PING
    if outcome.good:
        webhook.failing_since, webhook.last_success_at = None, now
    elif not ping:
        webhook.failing_since = webhook.failing_since or now
    row = repository.held(session, delivery.id, delivery.attempts)
    if row is None:  # it took too long, and another sender has it
        return
    since = row.tried_since or now
    pause = backoff(row.attempts, outcome.retry_after)
    if outcome.good or ping:
        repository.end(row, delivered=outcome.good, reason=None if outcome.good else str(outcome))
    elif outcome.status == GONE:
        repository.end(row, delivered=False, reason=str(outcome))
        _disable(session, webhook, "the receiver answered 410, which means that it is gone")
    elif now + timedelta(seconds=pause) > since + timedelta(seconds=retry_seconds):
        repository.end(row, delivered=False, reason=f"given up after {row.attempts} attempts: {outcome}")
        if webhook.last_success_at is None or webhook.last_success_at < since:
            _disable(
                session, webhook, f"nothing arrived since {since.isoformat(timespec='seconds')}: {outcome}"
            )
    else:
        row.due_at = now + timedelta(seconds=pause)


def backoff(attempts: int, asked: float | None) -> float:
    """Seconds until the next attempt: growing, scattered by half, and not sooner than the receiver asks for."""
    pause = min(LONGEST_PAUSE, FIRST_PAUSE * GROWTH ** min(attempts - 1, 10)) * random.uniform(0.5, 1.5)
    return max(pause, min(asked or 0.0, LONGEST_ASKED_PAUSE))


def _disable(session: Session, webhook: Webhook, reason: str) -> None:
    repository.disable(session, webhook, reason)
    log.warning("webhook %s was disabled: %s", webhook.id, reason)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
