"""The relay: carries messages from the database to the broker, and takes experiments from dead workers.

SQL is the truth and a message only a hint: sending one twice, or losing one, is put right here or at the claim.
"""

import logging
import signal
import threading
import time
from collections.abc import Set

from sqlalchemy.exc import SQLAlchemyError

from app.core import logs, metrics, tracing
from app.core.broker import Broker, BrokerError
from app.core.database import Database
from app.data.uploads.dispatch import announce
from app.experiments import dispatch
from app.experiments.workers import repository as workers
from app.experiments.workers.service import skew
from app.operations.health.shared_counters import Pusher
from app.operations.housekeeping.schedule import keep
from app.settings import Settings
from app.specs.placement import choose_queue
from app.sweeps.completion import finish_sweeps
from app.tables.experiments import Experiment
from app.team import running_limit
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
    before: Set[str] = frozenset()
    warned: set[str] = set()
    try:
        while not stop.is_set():
            try:
                before = step(settings, database, broker, before)
                _warn(database, warned)
                if time.monotonic() - purged >= PURGE_SECONDS:
                    with database.writing() as session:
                        dispatch.purge(session, settings.idempotency_ttl, 2 * settings.republish_seconds)
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


def step(settings: Settings, database: Database, broker: Broker, before: Set[str] = frozenset()) -> Set[str]:
    """One round. Leases come first, so that a broker that is down does not keep them from being seen.

    ``before`` are the kinds of workers that were there in the round before; returns those that are there now. When a
    kind comes or goes, what waits may belong to another queue than the one that it was announced in.
    """
    _reap(database)
    with database.reading() as session:
        live = frozenset(workers.live_queues(session))
    _publish(settings, database, broker, live)
    _republish(settings, database, broker, live, 0.0 if live != before else settings.republish_seconds)
    announce(database, broker, settings.republish_seconds)
    return live


def _warn(database: Database, warned: set[str]) -> None:
    """Say once of each worker that it runs other code."""
    with database.reading() as session:
        lines = set(skew(workers.alive(session)))
    for line in sorted(lines - warned):
        log.warning("%s", line)
    warned |= lines


def _reap(database: Database) -> None:
    with database.reading() as session:
        ids = dispatch.expired(session)
    for experiment_id in ids:
        with database.writing() as session:
            taken = dispatch.reap(session, experiment_id)
        if taken:
            metrics.LEASES_LOST.inc()
            log.warning("the lease ran out", extra={"experiment_id": experiment_id})


def _publish(settings: Settings, database: Database, broker: Broker, live: Set[str]) -> None:
    """Send what is due, except what an owner's limit on running experiments holds back."""
    with database.reading() as session:
        rooms = running_limit.rooms(session, settings)
        messages = dispatch.due(session, without=[owner for owner, room in rooms.items() if room <= 0])
        waiting = dispatch.still_queued(session, [m.experiment_id for m in messages])
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
                name = choose_queue(experiment.placement, live, gpu_on_demand=settings.gpu_on_demand)
                _send(broker, experiment, name)
            done.append(message.id)
    finally:
        if done:
            with database.writing() as session:
                dispatch.mark_published(session, done)


def _send(broker: Broker, experiment: Experiment, name: str) -> None:
    with (
        experiment.origin(experiment_id=experiment.id, owner_id=experiment.owner_id),
        tracing.span("publish experiment", kind="producer", parent=experiment.traceparent),
    ):
        broker.send_experiment(experiment.id, name)
        log.info("published")


def _republish(
    settings: Settings, database: Database, broker: Broker, live: Set[str], seconds: float
) -> None:
    """Send again what nobody took within ``seconds``, but only if the broker holds fewer messages than there should
    be: else the workers are merely busy."""
    with database.reading() as session:
        unannounced = dispatch.unannounced(session, seconds)
    by_queue: dict[str, list[str]] = {}
    for experiment_id, placement in unannounced.items():
        name = choose_queue(placement, live, gpu_on_demand=settings.gpu_on_demand)
        by_queue.setdefault(name, []).append(experiment_id)
    for name, ids in by_queue.items():
        if broker.pending(name) < len(ids):
            with database.writing() as session:
                dispatch.republish(session, ids)
            log.info("published %d experiments again, for the queue %s", len(ids), name)


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    settings = Settings()
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
