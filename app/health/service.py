"""Is everything there that the service needs?"""

from collections.abc import Callable

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from app.core.broker import EXPERIMENTS, INTERACTIVE, BrokerError
from app.core.context import Context
from app.core.objects import ObjectStoreError
from app.experiments.tables import Experiment
from app.health.schemas import Check, Readiness
from app.workers import repository as workers


def readiness(context: Context) -> Readiness:
    """Every check, each with what it found; none of them raises."""
    probes: dict[str, Callable[[], Check]] = {
        "database": lambda: _database(context),
        "broker": lambda: _broker(context),
        "objects": lambda: _objects(context),
        "worker": lambda: _worker(context, EXPERIMENTS),
        "interactive_worker": lambda: _worker(context, INTERACTIVE),
    }
    checks = {}
    for name, probe in probes.items():
        try:
            checks[name] = probe()
        except (SQLAlchemyError, BrokerError, ObjectStoreError) as error:
            checks[name] = Check(ok=False, detail=str(error).partition("\n")[0])
    return Readiness(ready=all(check.ok for check in checks.values()), checks=checks)


def live_workers(context: Context) -> dict[str, list[str]]:
    """Names of the workers that were seen lately, by queue."""
    found: dict[str, list[str]] = {EXPERIMENTS: [], INTERACTIVE: []}
    with context.database.whole.reading() as session:
        for worker in workers.alive(session):
            for queue in worker.queue.split(","):
                found.setdefault(queue, []).append(worker.name)
    return found


def _database(context: Context) -> Check:
    with context.database.reading() as session:
        session.execute(select(Experiment.id).limit(1))
    return Check(ok=True)


def _broker(context: Context) -> Check:
    return Check(ok=True, detail=f"{context.broker.pending(EXPERIMENTS)} messages wait")


def _objects(context: Context) -> Check:
    context.objects.exists("sha256")
    return Check(ok=True)


def _worker(context: Context, queue: str) -> Check:
    names = live_workers(context)[queue]
    if not names:
        return Check(
            ok=False, detail=f"no worker on the queue {queue!r} in the last {workers.ALIVE_SECONDS:g} s"
        )
    return Check(ok=True, detail=", ".join(names))
