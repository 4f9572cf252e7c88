"""Every change of an experiment's state, as small functions on an open transaction.

API, relay and workers all use these, so the rules are written once:
``queued -> running -> succeeded | failed | canceled``.

The claim of a worker is fenced. `claim` is a conditional UPDATE that increments the attempt number and sets a lease;
`renew` extends the lease. Every later write starts with `still_owned` or its equivalent: it locks the row and compares
the attempt number, so a worker that lost its lease writes nothing. Uploads (`app.data.uploads.repository`), webhook
deliveries and stages are claimed in the same way.

Whoever changes an experiment locks its row first. Events of one experiment therefore become visible in the
order of their ids, and a reader that remembers the last id misses none.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from app.core import metrics
from app.core.database import after_commit, database_now, from_now, utcnow, write
from app.data.resolve import lock_uploads, named_uploads
from app.experiments.planning import PlannedExperiment, runnable_spec
from app.specs.experiment import ExperimentSpec
from app.specs.placement import placement_of
from app.specs.stages import LAB_VERSION
from app.tables.experiments import (
    CANCELED,
    FAILED,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    Attempt,
    Event,
    Experiment,
    Label,
    Outbox,
)
from app.tables.results import ArmNote
from app.tables.sweeps import ArmKey
from app.team import quotas
from app.webhooks import outbox

Outcome = Literal["succeeded", "failed", "canceled"]
LOST, WAITING = "lost", "waiting"


class LeaseLost(Exception):  # noqa: N818  (reads as the fact it states)
    """The attempt no longer owns its experiment; its worker must stop and write nothing more."""


def create(session: Session, planned: Sequence[PlannedExperiment], attempts: int) -> list[Experiment]:
    """Write queued experiments and their outbox rows, in the same few statements for any number of them.

    Workers claim them in this order. ``attempts`` is how many of their attempts may be lost.
    Raises TooManyError if they exceed a quota of the session's owner, and InvalidError if an upload was deleted.
    """
    quotas.admit_experiments(session, len(planned))
    lock_uploads(session, {upload for one in planned for upload in named_uploads(one.spec)})
    now = database_now(session)
    experiments = [
        _row(one, attempts, now + timedelta(microseconds=place)) for place, one in enumerate(planned)
    ]
    session.add_all(experiments)
    session.flush()
    pairs = list(zip(experiments, planned, strict=True))
    write(session, Label, [{"experiment_id": e.id, **row} for e, one in pairs for row in _labels(one.spec)])
    announce(session, experiments)
    keys = [
        {"experiment_id": e.id, "arm": arm, "seed": seed, "key": key}
        for e, one in pairs
        for (arm, seed), key in one.arm_keys.items()
    ]
    write(session, ArmKey, keys)
    return experiments


def claim(session: Session, experiment_id: str, worker: str, lease_seconds: float) -> int | None:
    """Claim a queued experiment for ``worker``.

    Returns the attempt number, which is the fencing token, or None if the experiment is not queued (claimed by
    another worker, canceled, finished, deleted): a message is only a hint.
    """
    now = database_now(session)
    row = session.execute(
        update(Experiment)
        .where(Experiment.id == experiment_id, Experiment.status == QUEUED)
        .values(
            status=RUNNING,
            attempt=Experiment.attempt + 1,
            worker=worker,
            started_at=func.coalesce(Experiment.started_at, now),
            lease_expires_at=now + timedelta(seconds=lease_seconds),
        )
        .returning(Experiment.attempt, Experiment.started_at)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if row is None:
        return None
    attempt, first_at = row
    session.add(Attempt(experiment_id=experiment_id, number=attempt, worker=worker, started_at=now))
    emit(session, experiment_id, "state", {"status": RUNNING, "attempt": attempt})
    if first_at == now:
        outbox.emit_experiment_event(session, session.get_one(Experiment, experiment_id), "started", None)
    return int(attempt)


def renew(
    session: Session, experiment_id: str, attempt: int, lease_seconds: float, attempts_left: int | None = None
) -> bool:
    """Extend the lease. Returns True if a cancel was requested.

    ``attempts_left`` is set when the attempt has got further than the ones before: only attempts that are lost in a row
    without any advance suggest that the experiment itself kills its workers.
    Raises LeaseLost if the attempt no longer owns the experiment.
    """
    row = session.execute(
        update(Experiment)
        .where(Experiment.id == experiment_id, Experiment.attempt == attempt, Experiment.status == RUNNING)
        .values(
            lease_expires_at=from_now(lease_seconds),
            attempts_left=Experiment.attempts_left if attempts_left is None else attempts_left,
        )
        .returning(Experiment.cancel_requested_at)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if row is None:
        raise LeaseLost(f"experiment {experiment_id}: attempt {attempt} has lost its lease")
    return row[0] is not None


def still_owned(session: Session, experiment_id: str, attempt: int) -> bool:
    """Whether the attempt still owns the experiment, whose row is locked. Starts each write transaction of a worker."""
    return _owned(session, experiment_id, attempt) is not None


def finish(
    session: Session, experiment_id: str, attempt: int, outcome: Outcome, reason: str | None = None
) -> bool:
    """End the experiment for good. Returns False, and writes nothing, if the lease was lost."""
    experiment = _owned(session, experiment_id, attempt)
    if experiment is None:
        return False
    _close_attempt(session, experiment, outcome, reason)
    _end(session, experiment, outcome, reason)
    return True


def wait(
    session: Session, experiment_id: str, attempt: int, delay: float, reason: str = "a stage is busy"
) -> bool:
    """Requeue the experiment after ``delay`` seconds because something that it needs is not available yet: a stage that
    another worker computes, the object store, a worker that does not shut down.

    Not counted against ``attempts_left``. Consecutive waits are merged in the history. If a cancel was requested
    meanwhile, the experiment ends as canceled. Returns False if the lease was lost.
    """
    experiment = _owned(session, experiment_id, attempt)
    if experiment is None:
        return False
    if experiment.cancel_requested_at is not None:
        return finish(session, experiment_id, attempt, "canceled")
    closed = _close_attempt(session, experiment, WAITING, reason)
    previous = session.scalars(
        select(Attempt)
        .where(Attempt.experiment_id == experiment_id, Attempt.number < attempt)
        .order_by(Attempt.number.desc())
        .limit(1)
    ).one_or_none()
    if previous is not None and previous.outcome == WAITING:
        closed.started_at = previous.started_at
        session.delete(previous)
    enqueue(session, experiment, delay=delay, reason=reason)
    return True


def lose(session: Session, experiment_id: str, attempt: int, reason: str, delay: float = 0.0) -> bool:
    """End an attempt that failed through no fault of the experiment: a dead worker, a full disk, a lost store.

    ``attempts_left`` decreases by one. The experiment is requeued after ``delay`` seconds; if no attempt is left it
    fails with ``reason``; if a cancel was requested it ends as canceled. Returns False if the lease was lost.
    """
    experiment = _owned(session, experiment_id, attempt)
    if experiment is None:
        return False
    _close_attempt(session, experiment, LOST, reason)
    experiment.attempts_left -= 1
    if experiment.cancel_requested_at is not None:
        _end(session, experiment, CANCELED, None)
    elif experiment.attempts_left <= 0:
        _end(session, experiment, FAILED, f"no attempt is left; the last one: {reason}")
    else:
        enqueue(session, experiment, delay=delay, reason=reason)
    return True


def cancel(session: Session, experiment: Experiment) -> None:
    """Cancel a locked experiment: at once if it is queued; a running one is asked to stop."""
    if experiment.status == QUEUED:
        experiment.cancel_requested_at = utcnow()
        _end(session, experiment, CANCELED, None)
    elif experiment.status == RUNNING and experiment.cancel_requested_at is None:
        experiment.cancel_requested_at = utcnow()
        data = {"status": RUNNING, "attempt": experiment.attempt, "reason": "cancel requested"}
        emit(session, experiment.id, "state", data)


def enqueue(
    session: Session, experiment: Experiment, *, delay: float = 0.0, reason: str | None = None
) -> None:
    """Queue a locked experiment, with an outbox row that is due in ``delay`` seconds."""
    now = database_now(session)
    experiment.status = QUEUED
    experiment.queued_at = now
    experiment.due_at = now + timedelta(seconds=delay)
    experiment.worker = None
    experiment.lease_expires_at = None
    session.add(Outbox(experiment_id=experiment.id, not_before=experiment.due_at))
    emit(session, experiment.id, "state", _state(experiment, reason))


def announce(session: Session, experiments: Sequence[Experiment]) -> None:
    """Write the outbox rows and first events of new experiments, which no other transaction sees yet."""
    write(session, Outbox, [{"experiment_id": e.id, "not_before": e.queued_at} for e in experiments])
    write(
        session,
        Event,
        [
            {"experiment_id": e.id, "at": e.queued_at, "type": "state", "data": _state(e, None)}
            for e in experiments
        ],
    )


def restart(session: Session, experiment: Experiment, attempts: int) -> None:
    """Queue a locked experiment that has ended again; ``attempts`` of its attempts may be lost.

    Raises ConflictError if a plug-in that it needs is missing, TooManyError if a quota of the session's owner is
    used up.
    """
    runnable_spec(experiment)
    quotas.admit_experiments(session, 1)
    experiment.attempts_left = attempts
    experiment.started_at = experiment.finished_at = experiment.cancel_requested_at = None
    experiment.error, experiment.progress = None, {}
    session.execute(delete(ArmNote).where(ArmNote.experiment_id == experiment.id))
    experiment.update_origin()
    enqueue(session, experiment, reason="retry")


def emit(session: Session, experiment_id: str, kind: str, data: dict[str, Any]) -> None:
    """Append an event. The caller holds the lock on the experiment's row."""
    session.add(Event(experiment_id=experiment_id, at=utcnow(), type=kind, data=data))
    session.flush()


def lock(session: Session, experiment_id: str) -> Experiment | None:
    """The experiment's row, locked until the transaction ends, or None if there is none."""
    return session.get(Experiment, experiment_id, with_for_update=True, populate_existing=True)


def _owned(session: Session, experiment_id: str, attempt: int) -> Experiment | None:
    experiment = lock(session, experiment_id)
    if experiment is None or experiment.status != RUNNING or experiment.attempt != attempt:
        return None
    return experiment


def _close_attempt(session: Session, experiment: Experiment, outcome: str, reason: str | None) -> Attempt:
    row = session.get_one(Attempt, (experiment.id, experiment.attempt))
    now = database_now(session)
    row.finished_at, row.outcome, row.reason = now, outcome, reason
    after_commit(session, metrics.ATTEMPTS.labels(outcome).inc)
    quotas.add_device_time(session, experiment.owner_id, row.started_at, now)
    return row


def _end(session: Session, experiment: Experiment, status: str, reason: str | None) -> None:
    experiment.status = status
    experiment.finished_at = database_now(session)
    experiment.worker = None
    experiment.lease_expires_at = None
    experiment.error = {"reason": reason, "attempt": experiment.attempt} if status == FAILED else None
    if status == SUCCEEDED:
        experiment.progress = {**experiment.progress, "fraction": 1.0, "seconds_left": 0}
    emit(session, experiment.id, "state", _state(experiment, reason))
    outbox.emit_experiment_event(session, experiment, status, reason)
    after_commit(session, metrics.ENDED.labels(status).inc)


def _state(experiment: Experiment, reason: str | None) -> dict[str, Any]:
    data = {"status": experiment.status, "attempt": experiment.attempt}
    return data if reason is None else {**data, "reason": reason}


def _row(planned: PlannedExperiment, attempts: int, now: datetime) -> Experiment:
    spec = planned.spec
    return Experiment(
        name=spec.name,
        status=QUEUED,
        spec=spec.model_dump(mode="json"),
        spec_hash=spec.spec_hash,
        dataset=spec.dataset.name,
        model=spec.model.label,
        attack=spec.attack.name,
        placement=placement_of(spec),
        priority=spec.priority,
        lab_version=LAB_VERSION,
        created_at=now,
        due_at=now,
        queued_at=now,
        attempt=0,
        attempts_left=attempts,
        progress={},
        stages=planned.stored_stages,
    )


def _labels(spec: ExperimentSpec) -> Iterator[dict[str, str]]:
    for key, value in spec.tags.items():
        yield {"kind": "tag", "key": key, "value": value}
    for name in sorted({d.name for d in spec.defenses}):
        yield {"kind": "defense", "key": name, "value": ""}
    for kind, upload_id in named_uploads(spec):
        yield {"kind": kind, "key": upload_id, "value": ""}
