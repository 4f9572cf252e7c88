"""One attempt at an experiment: claim it, correct its keys, run the lab, record the outcome.

The outcomes:

- ``succeeded``: at least one arm and seed has results. Arms that failed carry their error in the results.
- ``failed``: no arm has results, or the run as a whole raised. The reason is stored with the experiment.
- ``canceled``: a client asked for it.
- ``requeued``: another worker is computing a stage that is needed, this worker shuts down, or the object store (or the
  database, for a write of some size) is full or unreachable. It waits for that to end, however long it takes.
- ``lost``: the lease was lost, so the experiment belongs to another attempt and nothing is written.
"""

import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from sqlalchemy import delete, update

from app.core import tracing
from app.core.database import Database
from app.core.errors import InvalidError
from app.core.objects import Objects, ObjectStoreError
from app.experiments import lifecycle, scheduling
from app.experiments.planning import plan_again
from app.operations.health.shared_counters import Pusher
from app.settings import Settings
from app.specs.experiment import ExperimentSpec
from app.specs.placement import KINDS
from app.specs.stages import LAB_VERSION
from app.specs.stored import MissingPluginError, StoredSpec
from app.tables.experiments import Experiment
from app.tables.reproductions import Reproduction
from app.tables.sweeps import ArmKey
from worker.lab.contracts import CanceledError, LabError, StageBusyError, StageStore
from worker.lease import DATABASE_ERRORS, SHUT_DOWN, Lease, StoppedError
from worker.recorder import SqlRecorder
from worker.store import SqlStageStore, UncachedStageStore
from worker.telemetry import AttemptTelemetry
from worker.uploads import fetched_inputs

REASON_CHARACTERS = 2000
log = logging.getLogger(__name__)

Run = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """How an attempt ends. ``delay`` is the number of seconds before a requeued experiment may be claimed again."""

    status: Literal["succeeded", "failed", "canceled", "requeued", "lost"]
    reason: str | None = None
    delay: float = 0.0


def run_attempt(
    hint: str,
    worker: str,
    settings: Settings,
    run: Run,
    queues: Sequence[str] = KINDS,
    pusher: Pusher | None = None,
) -> str | None:
    """Claim the next experiment for ``worker``, which serves ``queues``, and run it.

    ``hint`` is the experiment's id in the message. ``run`` has the signature of
    `worker.lab.experiment.run_experiment`. Returns the status of the outcome, or None if there is nothing to claim.
    """
    database, objects = Database(settings.database), Objects(settings.objects)
    try:
        with database.writing() as session:
            claim = scheduling.claim_next(session, hint, worker, queues, settings)
            experiment = session.get_one(Experiment, claim.experiment_id) if claim is not None else None
        if claim is None or experiment is None:
            log.info("nothing to do", extra={"experiment_id": hint})
            return None
        experiment_id, number = claim
        with (
            experiment.bind_origin(
                experiment_id=experiment_id, attempt=number, owner_id=experiment.owner_id, worker=worker
            ),
            tracing.span("attempt", kind="consumer", parent=experiment.traceparent) as span,
        ):
            log.info("attempt started")
            lease = Lease(database, settings, experiment_id, number)
            telemetry = AttemptTelemetry(database, worker, pusher or Pusher("worker"))
            outcome = _run_claimed(lease, objects, settings, run, telemetry)
            telemetry.tick()
            span.set_attribute("outcome", outcome.status)
            log.info("attempt ended", extra={"outcome": outcome.status, "reason": outcome.reason})
        return outcome.status
    finally:
        database.close()


def _run_claimed(
    lease: Lease, objects: Objects, settings: Settings, run: Run, telemetry: AttemptTelemetry
) -> Outcome:
    """Run the lab under the lease and record the outcome, which is ``lost`` if it could not be recorded."""
    recorder = SqlRecorder(lease, objects)

    def tick() -> None:
        recorder.flush()
        telemetry.tick()

    lease.on_tick, lease.on_outage = tick, recorder.log
    with lease, lease.stopped_by_sigterm():
        outcome = _run_lab(lease, recorder, objects, settings, run)
        recorded = _record(lease, recorder, outcome)
    return outcome if recorded else Outcome("lost", outcome.reason)


def _run_lab(lease: Lease, recorder: SqlRecorder, objects: Objects, settings: Settings, run: Run) -> Outcome:
    try:
        with lease.database.reading() as session:
            experiment = session.get_one(Experiment, lease.experiment_id)
            spec = StoredSpec(experiment.spec).parse()
            is_reproduction = session.get(Reproduction, lease.experiment_id) is not None
        store: StageStore = SqlStageStore(
            lease, objects, lambda: lease.retrying(recorder.flush), private=is_reproduction
        )
        if is_reproduction:
            store = UncachedStageStore(store, lease.experiment_id)
        lease.retrying(lambda: _rekey(lease, spec, settings))
        with fetched_inputs(spec, lease.database, objects, settings.datasets, lease.retrying) as files:
            run(
                spec,
                recorder,
                store,
                data_dir=settings.datasets,
                checkpoint_seconds=settings.checkpoint_seconds,
                **files,
            )
    except (StageBusyError, ObjectStoreError, *DATABASE_ERRORS) as error:
        return Outcome("requeued", str(error).partition("\n")[0], settings.stage_busy_seconds)
    except CanceledError:
        return _stopped_outcome(lease)
    except (LabError, MissingPluginError) as error:
        return Outcome("failed", str(error))
    except Exception as error:
        log.exception("the run raised an unexpected error")
        recorder.log(traceback.format_exc())
        return Outcome("failed", f"{type(error).__name__}: {error}")
    if recorder.failed and not recorder.succeeded:
        (arm, seed), message = next(iter(recorder.failed.items()))
        return Outcome("failed", f"every arm failed; {arm} with seed {seed}: {message}")
    return Outcome("succeeded")


def _rekey(lease: Lease, spec: ExperimentSpec, settings: Settings) -> None:
    """Replace the keys of the experiment's stages and arms by those of this version and of this machine's data and
    precision, if they differ.

    Stages of the older version, of other data or of another precision are then not reused, and numbers that an older
    worker reported are replaced, so one experiment or key never mixes numbers of two.
    """
    from worker.lab.compute import choose_precision  # noqa: PLC0415  # torch, for the process that computes only

    precision = partial(choose_precision, spec.device, spec.training.precision)
    experiment_id = lease.experiment_id
    with lease.database.reading() as session:
        experiment = session.get_one(Experiment, experiment_id)
        try:
            planned = plan_again(session, spec, settings.datasets, precision)
        except InvalidError:
            return  # what the spec refers to is missing or damaged here; the run says so
        if experiment.lab_version == LAB_VERSION and experiment.stages == planned.stored_stages:
            return
    with lease.writing() as session:
        session.execute(delete(ArmKey).where(ArmKey.experiment_id == experiment_id))
        session.add_all(
            ArmKey(experiment_id=experiment_id, arm=arm, seed=seed, key=key)
            for (arm, seed), key in planned.arm_keys.items()
        )
        session.execute(
            update(Experiment)
            .where(Experiment.id == experiment_id)
            .values(lab_version=LAB_VERSION, stages=planned.stored_stages)
        )
    log.info("experiment %s has new keys, of lab version %d", experiment_id, LAB_VERSION)


def _stopped_outcome(lease: Lease) -> Outcome:
    match lease.stop_reason:
        case "shut_down":
            return Outcome("requeued", SHUT_DOWN)
        case "lost":
            return Outcome("lost", "the lease was lost")
        case _:
            return Outcome("canceled")


def _record(lease: Lease, recorder: SqlRecorder, outcome: Outcome) -> bool:
    """Write what is still buffered, then the outcome. Returns False if the lease is lost."""
    if outcome.status == "lost":
        return False
    try:
        lease.retrying(recorder.flush)
        return lease.retrying(lambda: _write_outcome(lease, outcome))
    except StoppedError:
        return False


def _write_outcome(lease: Lease, outcome: Outcome) -> bool:
    reason = outcome.reason[:REASON_CHARACTERS] if outcome.reason is not None else None
    with lease.database.writing() as session:
        match outcome.status:
            case "requeued":
                return lifecycle.wait(
                    session, lease.experiment_id, lease.attempt, outcome.delay, reason or SHUT_DOWN
                )
            case "lost":
                return False
            case status:
                return lifecycle.finish(session, lease.experiment_id, lease.attempt, status, reason)
