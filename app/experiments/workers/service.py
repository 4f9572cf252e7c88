"""The overview of workers and queues."""

from collections.abc import Sequence
from datetime import datetime

from app.core.broker import CHECKS, INTERACTIVE, BrokerError
from app.core.context import Context
from app.core.database import database_now
from app.core.security import ADMIN
from app.core.versions import code_version
from app.experiments.workers import repository
from app.experiments.workers.repository import ALIVE_SECONDS, Length
from app.experiments.workers.schemas import (
    QueueOut,
    WorkerDevice,
    WorkerMemory,
    WorkerOut,
    Workers,
    WorkerState,
)
from app.specs.placement import KINDS
from app.specs.stages import LAB_VERSION
from app.tables.experiments import BUSY, DRAINING, WorkerHeartbeat

LOST: WorkerState = "lost"


def overview(context: Context) -> Workers:
    """Every worker and every queue."""
    with context.database.whole.reading() as session:
        now = database_now(session)
        rows = repository.all_workers(session)
        running = repository.running(session)
        lengths = repository.experiment_queues(session, gpu_on_demand=context.settings.gpu_on_demand)
        lengths[CHECKS] = repository.check_queue(session)
    visible = running
    if ADMIN not in context.principal.scopes:
        with context.database.reading() as session:
            visible = repository.running(session)
    workers = [_worker(row, row.name in running, visible.get(row.name), now) for row in rows]
    queues = [_queue(name, length, workers, now) for name, length in lengths.items()]
    queues.append(_queue(INTERACTIVE, _interactive(context), workers, now))
    return Workers(
        version=code_version(),
        lab_version=LAB_VERSION,
        warnings=skew(rows),
        workers=workers,
        queues=queues,
    )


def skew(rows: Sequence[WorkerHeartbeat]) -> list[str]:
    """One line for each worker that runs another version of the code than this process."""
    version = code_version()
    return [
        f"worker {row.name} runs version {row.version or 'unknown'}, not {version} as here"
        for row in rows
        if row.version != version
    ]


def _worker(row: WorkerHeartbeat, runs: bool, experiment_id: str | None, now: datetime) -> WorkerOut:
    silent = max(0.0, (now - row.seen_at).total_seconds())
    return WorkerOut(
        name=row.name,
        queues=row.queue.split(","),
        device=WorkerDevice.model_validate({"kind": row.device_kind, "name": row.device}),
        memory=WorkerMemory.model_validate(row.memory),
        state=_state(row, runs, silent),
        experiment_id=experiment_id,
        version=row.version,
        lab_version=row.lab_version,
        same_version=row.version == code_version(),
        started_at=row.started_at,
        seen_at=row.seen_at,
        seconds_since_sign=round(silent, 3),
    )


def _state(row: WorkerHeartbeat, runs: bool, silent: float) -> WorkerState:
    if silent > ALIVE_SECONDS:
        return LOST
    if row.state == DRAINING:
        return "draining"
    # Its last heartbeat may be outdated; the table of experiments says what runs now.
    if set(KINDS) & set(row.queue.split(",")):
        return "busy" if runs else "idle"
    return "busy" if row.state == BUSY else "idle"


def _queue(name: str, length: Length | None, workers: Sequence[WorkerOut], now: datetime) -> QueueOut:
    serving = [worker for worker in workers if name in worker.queues and worker.state != LOST]
    return QueueOut(
        name=name,
        waiting=length.waiting if length is not None else None,
        running=length.running if length is not None else None,
        oldest_seconds=round((now - length.oldest).total_seconds(), 3) if length and length.oldest else None,
        workers=len(serving),
    )


def _interactive(context: Context) -> Length | None:
    """Previews and predictions wait in the broker only."""
    try:
        return Length(context.broker.pending(INTERACTIVE), None, None)
    except BrokerError:
        return None
