"""Readiness: whether everything that the service needs is available, and accepts what is written."""

import time
from collections.abc import Callable

from sqlalchemy import exists, func, select
from sqlalchemy.exc import SQLAlchemyError

from app.core.broker import INTERACTIVE, BrokerError
from app.core.context import Context
from app.core.database import from_now, upsert
from app.core.objects import ERROR_PREFIX, ObjectStoreError
from app.experiments.lifecycle import WAITING
from app.experiments.workers import repository as workers
from app.experiments.workers.repository import ALIVE_SECONDS
from app.experiments.workers.service import skew
from app.operations.health.schemas import Check, Readiness
from app.specs.placement import KINDS
from app.specs.stages import LAB_VERSION
from app.tables.counters import SharedCounter
from app.tables.experiments import QUEUED, Attempt, Experiment, Stage

WRITE_SECONDS = 1.0
PROBE = "bdlab_readiness_probe"


def readiness(context: Context) -> Readiness:
    """The result of every check; a failing one does not raise."""
    probes: dict[str, Callable[[], Check]] = {
        "database": lambda: _database(context),
        "broker": lambda: _broker(context),
        "objects": lambda: _objects(context),
        "worker": lambda: _worker(context, *KINDS),
        "interactive_worker": lambda: _worker(context, INTERACTIVE),
        "versions": lambda: _versions(context),
    }
    checks = {}
    for name, probe in probes.items():
        try:
            checks[name] = probe()
        except (SQLAlchemyError, BrokerError, ObjectStoreError) as error:
            checks[name] = Check(ok=False, detail=str(error).partition("\n")[0])
    return Readiness(ready=all(check.ok for check in checks.values()), checks=checks)


def manned(context: Context) -> bool:
    """Whether a live worker trains experiments."""
    with context.database.whole.reading() as session:
        return bool(workers.live_queues(session))


def _database(context: Context) -> Check:
    with context.database.reading() as session:
        session.execute(select(Experiment.id).limit(1))
    _write_if_due(context, "database", lambda: _write_row(context))
    return Check(ok=True)


def _write_if_due(context: Context, name: str, write: Callable[[], None]) -> None:
    """Test that a back end can be written, at most once in `WRITE_SECONDS`, since anybody may ask for readiness."""
    now = time.monotonic()
    if now - context.written_at.get(name, -WRITE_SECONDS) >= WRITE_SECONDS:
        write()
        context.written_at[name] = now


def _write_row(context: Context) -> None:
    row = {"sample": PROBE, "labels": "{}", "shard": 0, "value": 0.0}
    with context.database.whole.writing() as session:
        upsert(
            session,
            SharedCounter,
            [row],
            ["sample", "labels", "shard"],
            lambda _: {"value": SharedCounter.value + 1},
        )


def _broker(context: Context) -> Check:
    context.broker.check()
    waiting = sum(context.broker.pending(queue) for queue in KINDS)
    return Check(ok=True, detail=f"{waiting} messages are pending")


def _objects(context: Context) -> Check:
    context.objects.exists("sha256")
    _write_if_due(context, "objects", context.objects.check)
    # A store that is nearly full accepts the small test object. What it refused last counts until it accepts a stage.
    settings = context.settings
    period = settings.storage_patience_seconds + settings.stage_busy_seconds + ALIVE_SECONDS
    waiting = (
        select(func.count(), func.max(Attempt.reason), func.max(Attempt.finished_at))
        .join(Experiment, (Experiment.id == Attempt.experiment_id) & (Experiment.attempt == Attempt.number))
        .where(
            Experiment.status == QUEUED,
            Experiment.attempt > 0,
            Attempt.outcome == WAITING,
            Attempt.finished_at > from_now(-2 * period),
            Attempt.reason.startswith(ERROR_PREFIX),
        )
    )
    with context.database.whole.reading() as session:
        count, reason, refused_at = session.execute(waiting).one()
        if not count or session.scalar(select(exists().where(Stage.ready_at > refused_at))):
            return Check(ok=True)
    return Check(ok=False, detail=f"{reason}; experiments that wait for it: {count}")


def _worker(context: Context, *queues: str) -> Check:
    with context.database.whole.reading() as session:
        alive = [row for row in workers.alive(session) if set(queues) & set(row.queue.split(","))]
    current = [row.name for row in alive if row.lab_version >= LAB_VERSION]
    if current:
        return Check(ok=True, detail=", ".join(current))
    named = " or ".join(map(repr, queues))
    if alive:
        detail = f"the workers on the queue {named} have a lab version before {LAB_VERSION}: {alive[0].name}"
        return Check(ok=False, detail=detail)
    return Check(ok=False, detail=f"no worker on the queue {named} in the last {workers.ALIVE_SECONDS:g} s")


def _versions(context: Context) -> Check:
    """Workers with other code are reported, but not an error: during an upgrade they are expected."""
    with context.database.whole.reading() as session:
        return Check(ok=True, detail="; ".join(skew(workers.alive(session))))
