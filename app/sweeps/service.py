"""What can be done with sweeps. Every function has committed when it returns."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from app.core import pagination
from app.core.context import Context
from app.core.database import utcnow
from app.experiments import repository as experiments
from app.experiments.idempotency import once
from app.experiments.schemas import ArmSummary
from app.specs.base import digest
from app.specs.stored import StoredSpec
from app.specs.sweep import SweepSpec
from app.sweeps import batch, repository
from app.sweeps.expansion import expand
from app.sweeps.schemas import CellOut, Links, SweepOut, SweepSummary, SweepValidation
from app.tables.experiments import Experiment
from app.tables.sweeps import SWEEP, Sweep, SweepCell

KEYS_A_QUERY = 1000


def submit(context: Context, spec: SweepSpec, key: str | None) -> tuple[dict[str, Any], bool]:
    """Write the sweep, all its experiments, and the messages that announce them, in one transaction.

    Returns the sweep as JSON, and True if it is a replay of the first answer to ``key``.
    Raises InvalidError if any cell cannot run, and for a ``key`` that was used with another body.
    """
    sound = expand(context, spec)

    def make(session: Session) -> SweepOut:
        sweep = Sweep(kind=SWEEP, name=spec.name, spec=spec.model_dump(mode="json"), created_at=utcnow())
        session.add(sweep)
        session.flush()
        made = batch.add(context, session, sweep, [(one.planned, one.cell.coordinates) for one in sound])
        session.add_all(
            SweepCell(
                sweep_id=sweep.id,
                number=one.cell.number,
                coordinates=one.cell.coordinates,
                experiment_id=experiment.id,
            )
            for one, experiment in zip(sound, made, strict=True)
        )
        session.flush()
        return _present(session, sweep)

    return once(context, key, digest([SWEEP, spec.model_dump(mode="json")]), SweepOut, make)


def validate(context: Context, spec: SweepSpec) -> SweepValidation:
    """A dry run: how large the sweep is, and how much of it is already there. Raises InvalidError."""
    sound = expand(context, spec)
    keys = {stage.key for one in sound for stage in one.planned.stages}
    with context.database.reading() as session:
        cached = count_cached(session, keys)
    models = sum(len(one.planned.arm_keys) for one in sound)
    return SweepValidation(cells=len(sound), models=models, stages=len(keys), cached=cached)


def count_cached(session: Session, keys: set[str]) -> int:
    """How many of the stages are ready."""
    listed = sorted(keys)
    parts = (listed[i : i + KEYS_A_QUERY] for i in range(0, len(listed), KEYS_A_QUERY))
    return sum(len(experiments.cached(session, part)) for part in parts)


def get(context: Context, sweep_id: str) -> SweepOut:
    """Raises NotFoundError."""
    with context.database.reading() as session:
        return _present(session, batch.found(repository.get(session, SWEEP, sweep_id), SWEEP, sweep_id))


def listing(context: Context, cursor: str | None, limit: int) -> tuple[list[SweepSummary], str | None]:
    """One page, the newest first, and the cursor of the next one if there is one."""
    with context.database.reading() as session:
        sweeps, following = batch.page(context, session, SWEEP, cursor, limit)
        return _summaries(session, sweeps), following


def cells(
    context: Context, sweep_id: str, status: str | None, cursor: str | None, limit: int
) -> tuple[list[CellOut], str | None]:
    """One page of cells in the order of their numbers. Raises NotFoundError, and BadRequestError for a bad cursor."""
    query = [sweep_id, status]
    after = int(pagination.decode(context.signer, query, cursor)[0]) if cursor is not None else -1
    with context.database.reading() as session:
        batch.found(repository.get(session, SWEEP, sweep_id), SWEEP, sweep_id)
        rows = repository.cells(session, sweep_id, status, after, limit + 1)
        shown = [(cell, experiment) for cell, experiment in rows[:limit]]
        summaries = experiments.summaries(session, [e.id for _, e in shown if e is not None])
    page = [_cell(cell, experiment, summaries) for cell, experiment in shown]
    if len(rows) <= limit:
        return page, None
    return page, pagination.encode(context.signer, query, [str(page[-1].number)])


def cancel(context: Context, sweep_id: str) -> SweepOut:
    """Cancel every experiment of the sweep that has not ended. Raises NotFoundError."""
    with context.database.writing() as session:
        sweep = batch.found(repository.lock(session, SWEEP, sweep_id), SWEEP, sweep_id)
        batch.cancel(session, sweep)
        return _present(session, sweep)


def retry(context: Context, sweep_id: str, statuses: Sequence[str]) -> SweepOut:
    """Queue the experiments in these final states again. Raises NotFoundError."""
    with context.database.writing() as session:
        sweep = batch.found(repository.lock(session, SWEEP, sweep_id), SWEEP, sweep_id)
        batch.retry(context, session, sweep, statuses)
        return _present(session, sweep)


def remove(context: Context, sweep_id: str) -> None:
    """Delete the sweep and its experiments. Raises NotFoundError, and ConflictError while one of them runs."""
    batch.remove(context, SWEEP, sweep_id)


def _present(session: Session, sweep: Sweep) -> SweepOut:
    (known,) = _summaries(session, [sweep])
    return SweepOut(**dict(known), spec=SweepSpec.model_validate(sweep.spec))


def _summaries(session: Session, sweeps: Sequence[Sweep]) -> list[SweepSummary]:
    ids = [sweep.id for sweep in sweeps]
    standings, counted = batch.standings(session, ids), repository.cell_counts(session, ids)
    return [
        SweepSummary(
            id=sweep.id,
            name=sweep.name,
            created_at=sweep.created_at,
            cells=counted[sweep.id][0],
            missing=counted[sweep.id][0] - counted[sweep.id][1],
            links=_links(sweep.id),
            **dict(standings[sweep.id]),
        )
        for sweep in sweeps
    ]


def _links(sweep_id: str) -> Links:
    here = f"/v1/sweeps/{sweep_id}"
    return Links(
        self=here,
        cells=f"{here}/cells",
        experiments=f"/v1/experiments?sweep={sweep_id}",
        cancel=f"{here}:cancel",
        retry=f"{here}:retry",
    )


def _cell(
    cell: SweepCell, experiment: Experiment | None, summaries: dict[str, dict[str, dict[str, float | None]]]
) -> CellOut:
    if experiment is None:
        return CellOut(
            number=cell.number,
            coordinates=cell.coordinates,
            status="missing",
            fraction=0.0,
            experiment_id=None,
            summary=[],
        )
    of_arm = summaries[experiment.id]
    arms = StoredSpec(experiment.spec).arms
    return CellOut(
        number=cell.number,
        coordinates=cell.coordinates,
        status=experiment.status,
        fraction=experiment.progress.get("fraction", 0.0),
        experiment_id=experiment.id,
        summary=[ArmSummary(arm=arm, **of_arm[arm]) for arm in arms if arm in of_arm],
    )
