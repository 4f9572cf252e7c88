"""Operations on sweeps and studies. Every function has committed when it returns.

``kind`` is SWEEP or STUDY. Functions that take an id raise NotFoundError if there is no batch of that kind.
"""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

from pydantic import ValidationError
from sqlalchemy import delete
from sqlalchemy.orm import Session

from app.core.context import Context
from app.core.database import utcnow
from app.core.errors import ConflictError, InvalidError, require
from app.core.pagination import paginate, paginate_by_age
from app.experiments import lifecycle
from app.experiments import repository as experiments
from app.experiments.idempotency import once
from app.experiments.lifecycle import create
from app.experiments.planning import PlannedExperiment
from app.experiments.service import delete_rows
from app.results.artifacts.storage import delete_unreferenced
from app.specs.base import digest
from app.specs.status import STATUSES
from app.specs.stored import MissingPluginError, StoredStudy
from app.specs.study import StudyParts, StudySpec
from app.specs.sweep import SweepSpec
from app.sweeps import matrix, repository
from app.sweeps.grid import PlannedCell, expand
from app.sweeps.planning import Coordinates, StudyPlan, fill, plan_study
from app.sweeps.presentation import path_of, present, present_cell, summarize
from app.sweeps.repository import ArmRef
from app.sweeps.schemas import (
    BatchOut,
    BatchSummary,
    CellOut,
    StudyOut,
    StudyValidation,
    SweepOut,
    SweepValidation,
    Table,
)
from app.tables.experiments import QUEUED, RUNNING, Experiment
from app.tables.sweeps import STUDY, SWEEP, Sweep, SweepCell, SweepExperiment
from app.webhooks import outbox

MAX_DELETIONS = 100
"""Maximum number of experiments deleted by one statement."""


def submit(context: Context, spec: SweepSpec | StudySpec, key: str | None) -> tuple[dict[str, Any], bool]:
    """Write the batch, its experiments and the messages that announce them, in one transaction.

    Returns the batch as JSON, and True if it repeats the first response to the Idempotency-Key ``key``.
    Raises InvalidError if a cell cannot run, or if ``key`` was used with another body.
    """
    plan = plan_study(context, spec) if isinstance(spec, StudySpec) else expand(context, spec)
    kind, out = (STUDY, StudyOut) if isinstance(spec, StudySpec) else (SWEEP, SweepOut)
    document = spec.model_dump(mode="json")

    def make(session: Session) -> BatchSummary:
        batch = Sweep(kind=kind, name=spec.name, spec=document, created_at=utcnow())
        session.add(batch)
        session.flush()
        if isinstance(plan, StudyPlan):
            _fill_cells(context, session, batch, plan)
        else:
            _add_cells(context, session, batch, plan)
        return present(session, batch)

    return once(context, key, digest([kind, document]), out, make)


def validate_sweep(context: Context, spec: SweepSpec) -> SweepValidation:
    """A dry run: the size of the sweep, and how much of it is cached. Raises InvalidError."""
    planned = [cell.experiment for cell in expand(context, spec)]
    with context.database.reading() as session:
        stages, cached = _count_stages(session, planned)
    models = sum(len(experiment.arm_keys) for experiment in planned)
    return SweepValidation(cells=len(planned), models=models, stages=stages, cached=cached)


def validate_study(context: Context, spec: StudySpec) -> StudyValidation:
    """A dry run: how many results exist, and what the others require. Raises InvalidError."""
    plan = plan_study(context, spec)
    with context.database.reading() as session:
        reused, submissions = fill(session, plan, plan.cells)
        stages, cached = _count_stages(session, [submission.experiment for submission in submissions])
    sizes = {"cells": len(plan.cells), "reused": len(reused), "experiments": len(submissions)}
    return StudyValidation(**sizes, stages=stages, cached=cached)


def get(context: Context, kind: str, batch_id: str) -> BatchOut:
    """The batch and its status."""
    with context.database.reading() as session:
        return present(session, _require(session, kind, batch_id))


def list_page(
    context: Context, kind: str, cursor: str | None, limit: int
) -> tuple[list[BatchSummary], str | None]:
    """One page, newest first, and the cursor of the next page if there is one. Raises BadRequestError."""
    with context.database.reading() as session:
        fetch = partial(repository.page, session, kind)
        batches, following = paginate_by_age(context.signer, [kind], cursor, limit, fetch)
        return summarize(session, batches), following


def list_cells(
    context: Context, sweep_id: str, status: str | None, cursor: str | None, limit: int
) -> tuple[list[CellOut], str | None]:
    """One page of a sweep's cells, and the cursor of the next page if there is one. Raises BadRequestError."""
    with context.database.reading() as session:
        _require(session, SWEEP, sweep_id)
        fetch = partial(repository.sweep_cells, session, sweep_id, status)
        query = [sweep_id, status]
        rows, following = paginate(context.signer, query, cursor, limit, fetch, lambda row: [row[0].number])
        summaries = experiments.summaries(session, [e.id for _, e in rows if e is not None])
    return [present_cell(cell, experiment, summaries) for cell, experiment in rows], following


def get_study_with_table(context: Context, study_id: str) -> tuple[BatchOut, Table]:
    """The study and its table with the results so far, for which its cells are loaded once."""
    with context.database.reading() as session:
        study = _require(session, STUDY, study_id)
        cells = matrix.load_cells(session, study_id)
        table = matrix.build_table(study, cells)
        return present(session, study, cells), table


def extend_study(context: Context, study_id: str, more: StudyParts) -> BatchOut:
    """Add attacks, defenses and seeds, and fill every empty cell: new ones, and those whose experiment was deleted.

    Raises InvalidError if a cell cannot run or a name is already used for something else, and ConflictError if a
    plug-in that the study needs is missing.
    """
    with context.database.writing() as session:
        study = _require(session, STUDY, study_id, lock=True)
        try:
            spec = StoredStudy(study.spec).parse().extended_with(more)
        except MissingPluginError as error:
            raise ConflictError(f"the study cannot be extended: {error}") from error
        except ValidationError as error:
            fault = error.errors()[0]
            field = ".".join(map(str, fault["loc"])) or "body"
            message = f"in the extended study: {fault['msg'].removeprefix('Value error, ')}"
            raise InvalidError.of(field, None, message) from error
        study.spec = spec.model_dump(mode="json")
        _fill_cells(context, session, study, plan_study(context, spec))
        return present(session, study)


def cancel(context: Context, kind: str, batch_id: str) -> BatchOut:
    """Cancel every experiment that the batch submitted and that has not ended."""
    with context.database.writing() as session:
        batch = _require(session, kind, batch_id, lock=True)
        for experiment in repository.lock_experiments(session, batch_id, (QUEUED, RUNNING), submitted=True):
            lifecycle.cancel(session, experiment)
        return present(session, batch)


def retry(context: Context, kind: str, batch_id: str, statuses: Sequence[str]) -> BatchOut:
    """Requeue the experiments with these terminal statuses. Finished stages are not computed again."""
    with context.database.writing() as session:
        batch = _require(session, kind, batch_id, lock=True)
        for experiment in repository.lock_experiments(session, batch_id, statuses, submitted=False):
            lifecycle.restart(session, experiment, context.settings.max_attempts)
        return present(session, batch)


def remove(context: Context, kind: str, batch_id: str) -> None:
    """Delete a batch and the experiments that it submitted, except those that another batch uses.

    Raises ConflictError while one of them is running.
    """
    files: set[str] = set()
    with context.database.writing() as session:
        batch = _require(session, kind, batch_id, lock=True)
        submitted = repository.lock_experiments(session, batch_id, STATUSES, submitted=True)
        if running := sum(experiment.status == RUNNING for experiment in submitted):
            raise ConflictError(f"{running} of its experiments run; first POST {path_of(batch)}:cancel")
        shared = repository.used_elsewhere(session, batch_id)
        unused = [experiment.id for experiment in submitted if experiment.id not in shared]
        session.execute(delete(Sweep).where(Sweep.id == batch_id))
        for ids in repository.chunks(unused, MAX_DELETIONS):
            files |= delete_rows(session, ids)
    delete_unreferenced(context.database, context.objects, files)


def _require(session: Session, kind: str, batch_id: str, *, lock: bool = False) -> Sweep:
    return require(repository.get(session, kind, batch_id, lock=lock), kind, batch_id)


def _count_stages(session: Session, planned: Sequence[PlannedExperiment]) -> tuple[int, int]:
    """The number of distinct stages, and of those among them that are cached."""
    keys = sorted({stage.key for experiment in planned for stage in experiment.stages})
    parts = repository.chunks(keys, repository.MAX_KEYS)
    return len(keys), sum(len(experiments.cached(session, part)) for part in parts)


def _submit_experiments(
    context: Context,
    session: Session,
    batch: Sweep,
    planned: Sequence[PlannedExperiment],
    coordinates: Sequence[dict[str, Any]],
) -> list[Experiment]:
    """Submit experiments for a batch whose row is new or locked."""
    submitted = create(session, planned, context.settings.max_attempts)
    session.add_all(
        SweepExperiment(sweep_id=batch.id, experiment_id=experiment.id, made=True, coordinates=position)
        for experiment, position in zip(submitted, coordinates, strict=True)
    )
    return submitted


def _add_cells(context: Context, session: Session, sweep: Sweep, cells: Sequence[PlannedCell]) -> None:
    """Submit the experiment of every cell of a new sweep."""
    planned, coordinates = [cell.experiment for cell in cells], [cell.coordinates for cell in cells]
    submitted = _submit_experiments(context, session, sweep, planned, coordinates)
    for cell, experiment in zip(cells, submitted, strict=True):
        place = {"number": cell.number, "coordinates": cell.coordinates}
        session.add(SweepCell(sweep_id=sweep.id, experiment_id=experiment.id, **place))
    session.flush()


def _fill_cells(context: Context, session: Session, study: Sweep, plan: StudyPlan) -> None:
    """Give every cell without an experiment an earlier one with its results, or else a new one."""
    rows = {Coordinates(**row.coordinates): row for row, _, _ in repository.study_cells(session, study.id)}
    empty = [cell for cell in plan.cells if cell not in rows or rows[cell].experiment_id is None]
    reused, submissions = fill(session, plan, empty)
    sources = dict(reused)
    if submissions:
        planned = [submission.experiment for submission in submissions]
        coordinates = [{"attack": s.cells[0].attack, "seed": s.cells[0].seed} for s in submissions]
        submitted = _submit_experiments(context, session, study, planned, coordinates)
        for experiment, submission in zip(submitted, submissions, strict=True):
            sources |= {cell: ArmRef(experiment.id, cell.arm) for cell in submission.cells}
    added = {arm.experiment_id for arm in reused.values()} - {row.experiment_id for row in rows.values()}
    session.add_all(
        SweepExperiment(sweep_id=study.id, experiment_id=experiment_id, made=False, coordinates={})
        for experiment_id in sorted(added)
    )
    numbers = itertools.count(max((row.number for row in rows.values()), default=-1) + 1)
    for cell in empty:
        if cell not in rows:
            rows[cell] = SweepCell(sweep_id=study.id, number=next(numbers), coordinates=cell._asdict())
            session.add(rows[cell])
        rows[cell].experiment_id, rows[cell].arm = sources[cell]
    session.flush()
    if empty and not submissions and outbox.wants_sweep_events(session, study.owner_id):
        outbox.check_sweeps(session, [study.id])  # no experiment is left to end and announce it
