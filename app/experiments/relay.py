"""The relay: carries messages from the database to the broker, and takes experiments from dead workers.

SQL is the truth and a message only a hint: sending one twice, or losing one, is put right here or at the claim.
"""

import logging
import signal
import threading
import time

from sqlalchemy.exc import SQLAlchemyError

from app.core import logs, meters, tracing
from app.core.broker import EXPERIMENTS, Broker, BrokerError
from app.core.database import Database
from app.experiments import queue
from app.experiments.tables import Experiment
from app.health.tallies import Pusher
from app.housekeeping.keeper import keep
from app.keys import running
from app.settings import Settings
from app.uploads.relay import announce
from app.webhooks.sender import Sender

log = logging.getLogger(__name__)
LONGEST_PAUSE = 30.0
PURGE_SECONDS = 600.0


def run(settings: Settings, stop: threading.Event) -> None:
    """Work until ``stop`` is set. While the database or the broker is down: log it, wait longer, go on."""
    database, broker = Database(settings.database), Broker(settings.broker)
    housekeeping = threading.Thread(target=keep, args=(settings, stop), name="housekeeping", daemon=True)
    housekeeping.start()
    faults, purged, pusher = 0, 0.0, Pusher("relay")
    try:
        while not stop.is_set():
            try:
                step(settings, database, broker)
                if time.monotonic() - purged >= PURGE_SECONDS:
                    with database.writing() as session:
                        queue.purge(session, settings.idempotency_ttl, 2 * settings.republish_seconds)
                    purged = time.monotonic()
                faults = 0
                pusher.push_if_due(database)
            except (SQLAlchemyError, BrokerError) as error:
                faults += 1
                log.warning(
                    "the relay cannot work, for the %d. time: %s", faults, str(error).partition("\n")[0]
                )
            stop.wait(min(LONGEST_PAUSE, settings.relay_seconds * 2 ** min(faults, 10)))
    finally:
        broker.close()
        database.close()


def step(settings: Settings, database: Database, broker: Broker) -> None:
    """One round. Leases come first, so that a broker that is down does not keep them from being seen."""
    _reap(database)
    _publish(settings, database, broker)
    _republish(settings, database, broker)
    announce(database, broker, settings.republish_seconds)


def _reap(database: Database) -> None:
    with database.reading() as session:
        ids = queue.expired(session)
    for experiment_id in ids:
        with database.writing() as session:
            taken = queue.reap(session, experiment_id)
        if taken:
            meters.LEASES_LOST.inc()
            log.warning("the lease ran out", extra={"experiment_id": experiment_id})


def _publish(settings: Settings, database: Database, broker: Broker) -> None:
    """Send what is due, except what an owner's limit on running experiments holds back."""
    with database.reading() as session:
        rooms = running.rooms(session, settings)
        messages = queue.due(session, without=[owner for owner, room in rooms.items() if room <= 0])
        waiting = queue.queued(session, [m.experiment_id for m in messages])
    done: list[int] = []
    try:
        for message in messages:
            experiment = waiting.get(message.experiment_id)
            if experiment is not None:
                owner = experiment.owner_id
                if rooms.get(owner, 1) <= 0:
                    continue
                if owner in rooms:
                    rooms[owner] -= 1
                _send(broker, experiment)
            done.append(message.id)
    finally:
        if done:
            with database.writing() as session:
                queue.mark_published(session, done)


def _send(broker: Broker, experiment: Experiment) -> None:
    with (
        experiment.origin(experiment_id=experiment.id, owner_id=experiment.owner_id),
        tracing.span("publish experiment", kind="producer", parent=experiment.traceparent),
    ):
        broker.send_experiment(experiment.id)
        log.info("published")


def _republish(settings: Settings, database: Database, broker: Broker) -> None:
    """Send again what nobody took, but only if the broker holds fewer messages than there should be: else
    the workers are merely busy."""
    with database.reading() as session:
        ids = queue.overlooked(session, settings.republish_seconds)
    if not ids or broker.pending(EXPERIMENTS) >= len(ids):
        return
    with database.writing() as session:
        queue.republish(session, ids)
    log.info("published %d experiments again", len(ids))


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    settings = Settings()
    logs.configure("relay", settings)
    tracing.configure("relay")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    webhooks = threading.Thread(target=Sender(settings).run, args=[stop], name="webhooks")
    webhooks.start()
    try:
        run(settings, stop)
    finally:
        stop.set()
        webhooks.join()
        tracing.flush()


if __name__ == "__main__":
    main()
