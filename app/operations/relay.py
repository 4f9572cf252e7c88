"""The relay: publishes messages from the database to the broker, and requeues experiments of dead workers.

SQL is the truth and a message only a hint: duplicates are ignored when a worker claims, lost ones are published again.
"""

import logging
import math
import signal
import threading
import time
from collections.abc import Set
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy.exc import SQLAlchemyError

from app.core import logs, metrics, tracing
from app.core.broker import Broker, BrokerError
from app.core.database import Database
from app.core.security import keep_files_private
from app.data.uploads.dispatch import announce
from app.experiments import scheduling
from app.experiments.workers import repository as workers
from app.experiments.workers.service import skew
from app.operations.health.shared_counters import Pusher
from app.operations.housekeeping.schedule import run_periodically
from app.settings import Settings, read_settings
from app.specs.placement import choose_queue
from app.sweeps.completion import finish_sweeps
from app.tables.experiments import Experiment
from app.team import quotas
from app.webhooks.sender import Sender

log = logging.getLogger(__name__)
MAX_PAUSE_SECONDS = 30.0
PURGE_SECONDS = 600.0


@dataclass
class Sightings:
    """What the rounds of this process have seen."""

    live: Set[str] = frozenset()
    """Kinds of workers that were alive in the last round."""
    expired: dict[tuple[str, datetime], int] = field(default_factory=dict)
    """In how many rounds in a row an experiment had this expired lease."""


def run(settings: Settings, stop: threading.Event) -> None:
    """Work until ``stop`` is set. While database or broker are unreachable, retry with exponential backoff."""
    database, broker = Database(settings.database), Broker(settings.broker)
    housekeeping = threading.Thread(
        target=run_periodically, args=(settings, stop), name="housekeeping", daemon=True
    )
    housekeeping.start()
    failures, purged_at, pusher = 0, 0.0, Pusher("relay")
    seen = Sightings()
    warned: set[str] = set()
    try:
        while not stop.is_set():
            try:
                step(settings, database, broker, seen)
                _warn_of_version_skew(database, warned)
                if time.monotonic() - purged_at >= PURGE_SECONDS:
                    with database.writing() as session:
                        scheduling.purge(session, settings.idempotency_ttl, 2 * settings.republish_seconds)
                    purged_at = time.monotonic()
                failures = 0
                pusher.push_if_due(database)
            except (SQLAlchemyError, BrokerError) as error:
                failures += 1
                log.warning("failed %d times in a row: %s", failures, str(error).partition("\n")[0])
            stop.wait(min(MAX_PAUSE_SECONDS, settings.relay_seconds * 2 ** min(failures, 10)))
    finally:
        broker.close()
        database.close()


def step(settings: Settings, database: Database, broker: Broker, seen: Sightings | None = None) -> None:
    """One round. Leases come first, so that they are handled while the broker is down.

    When the kinds of live workers change, waiting experiments may belong to another queue than the one they were
    published to, so they are published again.
    """
    seen = seen or Sightings()
    _requeue_expired(settings, database, seen)
    with database.reading() as session:
        live = frozenset(workers.live_queues(session))
    _publish_due(settings, database, broker, live)
    _republish_lost(
        settings, database, broker, live, 0.0 if live != seen.live else settings.republish_seconds
    )
    announce(database, broker, settings.republish_seconds)
    seen.live = live


def _warn_of_version_skew(database: Database, warned: set[str]) -> None:
    """Log once for each worker that it runs other code."""
    with database.reading() as session:
        lines = set(skew(workers.alive(session)))
    for line in sorted(lines - warned):
        log.warning("%s", line)
    warned |= lines


def _requeue_expired(settings: Settings, database: Database, seen: Sightings) -> None:
    """Requeue experiments whose lease has expired and has not been renewed while this process saw a heartbeat's time
    pass.

    When a machine or its clock has been asleep, every lease has expired, but its worker renews it at once. Time that
    this process slept through counts as one round.
    """
    rounds = 1 + math.ceil(settings.heartbeat_seconds / settings.relay_seconds)
    with database.reading() as session:
        expired = scheduling.expired(session, settings.lease_seconds)
    seen.expired = {lease: seen.expired.get(lease, 0) + 1 for lease in expired}
    for (experiment_id, expires_at), count in seen.expired.items():
        if count < rounds:
            continue
        with database.writing() as session:
            requeued = scheduling.reap(session, experiment_id, expires_at)
        if requeued:
            metrics.LEASES_LOST.inc()
            log.warning("the lease expired", extra={"experiment_id": experiment_id})


def _publish_due(settings: Settings, database: Database, broker: Broker, live: Set[str]) -> None:
    """Publish due messages, except those that exceed an owner's limit on running experiments."""
    with database.reading() as session:
        slots = quotas.free_slots(session, settings)
        messages = scheduling.due(session, without=[owner for owner, free in slots.items() if free <= 0])
        waiting = scheduling.still_queued(session, [m.experiment_id for m in messages])
    published: list[int] = []
    try:
        for message in messages:
            experiment = waiting.get(message.experiment_id)
            if experiment is not None:
                owner = experiment.owner_id
                if slots.get(owner, 1) <= 0:
                    continue
                if owner in slots:
                    slots[owner] -= 1
                queue = choose_queue(experiment.placement, live, gpu_on_demand=settings.gpu_on_demand)
                _publish(broker, experiment, queue)
            published.append(message.id)
    finally:
        if published:
            with database.writing() as session:
                scheduling.mark_published(session, published)


def _publish(broker: Broker, experiment: Experiment, queue: str) -> None:
    with (
        experiment.bind_origin(experiment_id=experiment.id, owner_id=experiment.owner_id),
        tracing.span("publish experiment", kind="producer", parent=experiment.traceparent),
    ):
        broker.send_experiment(experiment.id, queue)
        log.info("published")


def _republish_lost(
    settings: Settings, database: Database, broker: Broker, live: Set[str], seconds: float
) -> None:
    """Publish again what no worker claimed within ``seconds``, if the broker has fewer messages than there are such
    experiments: otherwise the workers are merely busy."""
    with database.reading() as session:
        unannounced = scheduling.unannounced(session, seconds)
    by_queue: dict[str, list[str]] = {}
    for experiment_id, placement in unannounced.items():
        queue = choose_queue(placement, live, gpu_on_demand=settings.gpu_on_demand)
        by_queue.setdefault(queue, []).append(experiment_id)
    for queue, ids in by_queue.items():
        if broker.pending(queue) < len(ids):
            with database.writing() as session:
                scheduling.republish(session, ids)
            log.info("published %d experiments again, to the queue %s", len(ids), queue)


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    keep_files_private()
    settings = read_settings()
    logs.configure("relay", settings)
    tracing.configure("relay")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    webhooks = threading.Thread(target=Sender(settings, finish_sweeps).run, args=[stop], name="webhooks")
    webhooks.start()
    try:
        run(settings, stop)
    finally:
        stop.set()
        webhooks.join()
        tracing.flush()


if __name__ == "__main__":
    main()
