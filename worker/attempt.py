"""One attempt at an experiment: claim it, run the lab, record how it ended.

How it ends:

- succeeded: the run came to its end and at least one arm and seed has results. Arms that failed carry their
  error in the results.
- failed: no arm has results, or the run as a whole raised. The reason is kept with the experiment.
- canceled: a client asked for it.
- back in the queue: another worker computes a stage that is needed, or this worker shuts down.
- nothing at all: the lease was lost, so the experiment is somebody else's now.
"""

import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from app.core import tracing
from app.core.database import Database
from app.core.objects import Objects, ObjectStoreError
from app.experiments import lifecycle, scheduling
from app.operations.health.shared_counters import Pusher
from app.settings import Settings
from app.specs.placement import KINDS
from app.specs.stages import LAB_VERSION
from app.specs.stored import MissingPluginError, StoredSpec
from app.tables.experiments import Experiment
from app.tables.reproductions import Reproduction
from worker.lab.contracts import CanceledError, LabError, StageBusyError, StageStore
from worker.lease import Lease, StoppedError
from worker.recorder import SqlRecorder
from worker.store import FreshStore, SqlStageStore
from worker.uploads import at_hand
from worker.versions import rekey
from worker.watch import Watch

SHUT_DOWN = "the worker shut down"
REASON_CHARACTERS = 2000
log = logging.getLogger(__name__)

Run = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class End:
    """How an attempt ends: an outcome of `lifecycle.finish`, "requeued" after ``delay`` seconds, or "lost"."""

    outcome: str
    reason: str | None = None
    delay: float = 0.0


def attempt(
    hint: str,
    worker: str,
    settings: Settings,
    run: Run,
    serves: Sequence[str] = KINDS,
    pusher: Pusher | None = None,
) -> str | None:
    """Try the experiment whose turn it is with ``run``, which has the signature of `worker.lab.experiment.run`.

    ``hint`` is the id that the message named; ``serves`` are the worker's queues. Returns how the attempt ended, or
    None if nothing waits for this worker.
    """
    database, objects = Database(settings.database), Objects(settings.objects)
    try:
        with database.writing() as session:
            taken = scheduling.claim_next(session, hint, worker, serves, settings)
            experiment = session.get_one(Experiment, taken.experiment_id) if taken is not None else None
        if taken is None or experiment is None:
            log.info("nothing to do", extra={"experiment_id": hint})
            return None
        experiment_id, number = taken
        with (
            experiment.bind_origin(
                experiment_id=experiment_id, attempt=number, owner_id=experiment.owner_id, worker=worker
            ),
            tracing.span("attempt", kind="consumer", parent=experiment.traceparent) as span,
        ):
            log.info("attempt started")
            lease = Lease(database, settings, experiment_id, number)
            recorder = SqlRecorder(lease, objects)
            watch = Watch(database, worker, pusher or Pusher("worker"))

            def tick() -> None:
                recorder.flush()
                watch.tick()

            lease.on_tick = tick
            with lease, lease.handed_back_on_sigterm():
                end = _run(lease, recorder, objects, settings, run)
                outcome = _record(lease, recorder, end)
            watch.tick()
            span.set_attribute("outcome", outcome)
            log.info("attempt ended", extra={"outcome": outcome, "reason": end.reason})
        return outcome
    finally:
        database.close()


def _run(lease: Lease, recorder: SqlRecorder, objects: Objects, settings: Settings, run: Run) -> End:
    try:
        with lease.database.reading() as session:
            experiment = session.get_one(Experiment, lease.experiment_id)
            spec = StoredSpec(experiment.spec).parse()
            afresh = session.get(Reproduction, lease.experiment_id) is not None
        store: StageStore = SqlStageStore(
            lease, objects, lambda: lease.persist(recorder.flush), private=afresh
        )
        if afresh:
            store = FreshStore(store, lease.experiment_id)
        if experiment.lab_version != LAB_VERSION:
            lease.persist(lambda: rekey(lease, spec, settings))
        with at_hand(spec, lease.database, objects, settings.datasets, lease.persist) as files:
            run(
                spec,
                recorder,
                store,
                data_dir=settings.datasets,
                checkpoint_seconds=settings.checkpoint_seconds,
                **files,
            )
    except StageBusyError as error:
        return End("requeued", str(error), settings.stage_busy_seconds)
    except CanceledError:
        return _stopped(lease)
    except (LabError, ObjectStoreError, MissingPluginError) as error:
        return End("failed", str(error))
    except Exception as error:
        log.exception("the experiment broke")
        recorder.log(traceback.format_exc())
        return End("failed", f"{type(error).__name__}: {error}")
    if recorder.failed and not recorder.succeeded:
        (arm, seed), message = next(iter(recorder.failed.items()))
        return End("failed", f"every arm failed; {arm} with seed {seed}: {message}")
    return End("succeeded")


def _stopped(lease: Lease) -> End:
    match lease.verdict:
        case "handed back":
            return End("requeued", SHUT_DOWN)
        case "lost":
            return End("lost", "the lease was lost")
        case _:
            return End("canceled")


def _record(lease: Lease, recorder: SqlRecorder, end: End) -> str:
    """Write what is still gathered and the end itself; a lost lease writes neither."""
    try:
        if end.outcome != "lost":
            lease.persist(recorder.flush)
            if lease.persist(lambda: _write_end(lease, end)):
                return end.outcome
    except StoppedError:
        pass
    return "lost"


def _write_end(lease: Lease, end: End) -> bool:
    reason = end.reason[:REASON_CHARACTERS] if end.reason is not None else None
    with lease.database.writing() as session:
        return _finish(session, lease, end, reason)


def _finish(session: Session, lease: Lease, end: End, reason: str | None) -> bool:
    mine = lease.experiment_id, lease.attempt
    match end.outcome:
        case "requeued":
            return lifecycle.wait(session, *mine, end.delay, reason or SHUT_DOWN)
        case "succeeded":
            return lifecycle.finish(session, *mine, "succeeded")
        case "canceled":
            return lifecycle.finish(session, *mine, "canceled")
        case _:
            return lifecycle.finish(session, *mine, "failed", reason)
