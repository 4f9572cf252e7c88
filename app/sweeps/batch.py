"""What a sweep and a study share: experiments that are followed, canceled, retried and deleted together."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete
from sqlalchemy.orm import Session

from app.core import pagination
from app.core.context import Context
from app.core.errors import ConflictError, NotFoundError
from app.core.validation import shown
from app.experiments import lifecycle
from app.experiments.creation import create
from app.experiments.planning import PlannedExperiment
from app.experiments.service import delete_rows
from app.results.artifacts.storage import drop
from app.specs.status import TERMINAL, Status
from app.sweeps import repository
from app.sweeps.schemas import Counts, Standing
from app.tables.experiments import CANCELED, FAILED, QUEUED, RUNNING, SUCCEEDED, Experiment
from app.tables.sweeps import SWEEP, Sweep, SweepExperiment

PATHS = {SWEEP: "/v1/sweeps", "study": "/v1/studies"}
CHUNK = 100
"""Experiments that are deleted by one statement: databases bound how many values a statement may hold."""


def found(sweep: Sweep | None, kind: str, sweep_id: str) -> Sweep:
    """The sweep. Raises NotFoundError if it is None."""
    if sweep is None:
        raise NotFoundError(f"there is no {kind} {shown(sweep_id)}")
    return sweep


def standings(session: Session, ids: Sequence[str]) -> dict[str, Standing]:
    """How each sweep stands: two queries, however many they are."""
    counts, running = repository.counts(session, ids), repository.running(session, ids)
    return {i: _standing(counts[i], running[i]) for i in ids}


def _standing(counts: dict[str, int], running: float) -> Standing:
    total = sum(counts.values())
    ended = sum(counts.get(status, 0) for status in TERMINAL)
    status: Status
    if ended < total:
        status = "running" if ended or counts.get(RUNNING) else "queued"
    elif counts.get(FAILED):
        status = "failed"
    else:
        status = "canceled" if counts.get(CANCELED) else "succeeded"
    fraction = (ended + running) / total if total else 1.0
    return Standing(status=status, fraction=round(fraction, 6), experiments=Counts(**counts))


def add(
    context: Context,
    session: Session,
    sweep: Sweep,
    planned: Sequence[tuple[PlannedExperiment, dict[str, Any]]],
) -> list[Experiment]:
    """Submit experiments, each with its coordinates, in the name of a sweep whose row is locked or new."""
    made = create(session, [one for one, _ in planned], context.settings.max_attempts)
    session.add_all(
        SweepExperiment(sweep_id=sweep.id, experiment_id=experiment.id, made=True, coordinates=where)
        for experiment, (_, where) in zip(made, planned, strict=True)
    )
    return made


def page(
    context: Context, session: Session, kind: str, cursor: str | None, limit: int
) -> tuple[Sequence[Sweep], str | None]:
    """One page, the newest first, and the cursor of the next. Raises BadRequestError for a bad cursor."""
    after = None
    if cursor is not None:
        created_at, last_id = pagination.decode(context.signer, [kind], cursor)
        after = (datetime.fromisoformat(created_at), last_id)
    rows = repository.page(session, kind, after, limit + 1)
    if len(rows) <= limit:
        return rows, None
    last = rows[limit - 1]
    position = [last.created_at.isoformat(), last.id]
    return rows[:limit], pagination.encode(context.signer, [kind], position)


def cancel(session: Session, sweep: Sweep) -> None:
    """Cancel every experiment that this sweep submitted and that has not ended."""
    for experiment in repository.locked(session, sweep.id, (QUEUED, RUNNING), made=True):
        lifecycle.cancel(session, experiment)


def retry(context: Context, session: Session, sweep: Sweep, statuses: Sequence[str]) -> None:
    """Queue the experiments in these final states again; finished stages are not computed again."""
    for experiment in repository.locked(session, sweep.id, statuses, made=False):
        lifecycle.restart(session, experiment, context.settings.max_attempts)


def remove(context: Context, kind: str, sweep_id: str) -> None:
    """Delete a sweep and the experiments that it submitted, but those that another sweep or study uses.

    Raises NotFoundError, and ConflictError while one of them runs.
    """
    files: set[str] = set()
    with context.database.writing() as session:
        sweep = found(repository.lock(session, kind, sweep_id), kind, sweep_id)
        states = (QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELED)
        mine = repository.locked(session, sweep_id, states, made=True)
        if running := [e.id for e in mine if e.status == RUNNING]:
            raise ConflictError(
                f"{len(running)} of its experiments run; first POST {PATHS[kind]}/{sweep_id}:cancel"
            )
        kept = repository.used_elsewhere(session, sweep_id)
        doomed = [e.id for e in mine if e.id not in kept]
        session.execute(delete(Sweep).where(Sweep.id == sweep.id))
        for start in range(0, len(doomed), CHUNK):
            files |= delete_rows(session, doomed[start : start + CHUNK])
    drop(context.database, context.objects, files)
