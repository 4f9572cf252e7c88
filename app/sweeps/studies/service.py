"""What can be done with studies. Every function has committed when it returns."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from sqlalchemy.orm import Session

from app.core.context import Context
from app.core.database import utcnow
from app.core.errors import InvalidError, summary
from app.core.validation import FieldError
from app.experiments.idempotency import once
from app.specs.base import digest
from app.specs.study import StudyParts, StudySpec
from app.sweeps import batch, repository
from app.sweeps.service import count_cached
from app.sweeps.studies import matrix
from app.sweeps.studies import repository as cells
from app.sweeps.studies.matrix import SeedCell
from app.sweeps.studies.planning import Layout, Place, fill, lay_out
from app.sweeps.studies.schemas import Links, StudyOut, StudySummary, StudyValidation, Table
from app.tables.sweeps import STUDY, Sweep, SweepCell, SweepExperiment
from app.webhooks import outbox


def submit(context: Context, spec: StudySpec, key: str | None) -> tuple[dict[str, Any], bool]:
    """Write the study and the experiments that fill its cells, in one transaction; what is there already is used.

    Returns the study as JSON, and True if it is a replay of the first answer to ``key``.
    Raises InvalidError if any cell cannot run, and for a ``key`` that was used with another body.
    """
    layout = lay_out(context, spec)

    def make(session: Session) -> StudyOut:
        study = Sweep(kind=STUDY, name=spec.name, spec=spec.model_dump(mode="json"), created_at=utcnow())
        session.add(study)
        session.flush()
        _fill(context, session, study, spec, layout)
        return _present(session, study)

    return once(context, key, digest([STUDY, spec.model_dump(mode="json")]), StudyOut, make)


def extend(context: Context, study_id: str, more: StudyParts) -> StudyOut:
    """Add attacks, defenses and seeds, and queue what is missing: new cells, and those whose experiment was deleted.

    Raises NotFoundError, and InvalidError if a cell cannot run or a name is taken by something else.
    """
    with context.database.writing() as session:
        study = batch.found(repository.lock(session, STUDY, study_id), STUDY, study_id)
        try:
            spec = StudySpec.model_validate(study.spec).extended_with(more)
        except ValidationError as error:
            fault = error.errors()[0]
            field = ".".join(map(str, fault["loc"])) or "body"
            message = f"with what the study has already: {fault['msg'].removeprefix('Value error, ')}"
            faults = [FieldError(field=field, value=None, message=message)]
            raise InvalidError(summary(faults), faults) from error
        study.spec = spec.model_dump(mode="json")
        _fill(context, session, study, spec, lay_out(context, spec))
        return _present(session, study)


def validate(context: Context, spec: StudySpec) -> StudyValidation:
    """A dry run: how much of the study is there already. Raises InvalidError."""
    layout = lay_out(context, spec)
    with context.database.reading() as session:
        filling = fill(session, spec, layout, layout.keys)
        asked = {stage.key for planned, _ in filling.experiments for stage in planned.stages}
        cached = count_cached(session, asked)
    return StudyValidation(
        cells=len(layout.keys),
        reused=len(filling.found),
        experiments=len(filling.experiments),
        stages=len(asked),
        cached=cached,
    )


def get(context: Context, study_id: str) -> StudyOut:
    """Raises NotFoundError."""
    with context.database.reading() as session:
        return _present(session, batch.found(repository.get(session, STUDY, study_id), STUDY, study_id))


def table(context: Context, study_id: str) -> Table:
    """The matrix as far as it has come. Raises NotFoundError."""
    with context.database.reading() as session:
        study = batch.found(repository.get(session, STUDY, study_id), STUDY, study_id)
        return matrix.table(study, StudySpec.model_validate(study.spec), matrix.seed_cells(session, study_id))


def get_with_table(context: Context, study_id: str) -> tuple[StudyOut, Table]:
    """The study and its matrix, for which its cells are looked up once. Raises NotFoundError."""
    with context.database.reading() as session:
        study = batch.found(repository.get(session, STUDY, study_id), STUDY, study_id)
        found = matrix.seed_cells(session, study_id)
        return _present(session, study, found), matrix.table(
            study, StudySpec.model_validate(study.spec), found
        )


def listing(context: Context, cursor: str | None, limit: int) -> tuple[list[StudySummary], str | None]:
    """One page, the newest first, and the cursor of the next one if there is one."""
    with context.database.reading() as session:
        studies, following = batch.page(context, session, STUDY, cursor, limit)
        return _summaries(session, studies), following


def cancel(context: Context, study_id: str) -> StudyOut:
    """Cancel what the study submitted and what has not ended. Raises NotFoundError."""
    with context.database.writing() as session:
        study = batch.found(repository.lock(session, STUDY, study_id), STUDY, study_id)
        batch.cancel(session, study)
        return _present(session, study)


def retry(context: Context, study_id: str, statuses: Sequence[str]) -> StudyOut:
    """Queue the experiments in these final states again. Raises NotFoundError."""
    with context.database.writing() as session:
        study = batch.found(repository.lock(session, STUDY, study_id), STUDY, study_id)
        batch.retry(context, session, study, statuses)
        return _present(session, study)


def remove(context: Context, study_id: str) -> None:
    """Delete the study and what it submitted. Raises NotFoundError, and ConflictError while an experiment runs."""
    batch.remove(context, STUDY, study_id)


def _fill(context: Context, session: Session, study: Sweep, spec: StudySpec, layout: Layout) -> None:
    """Give every cell that has none an experiment: one that is there, or a new one."""
    rows = {
        Place(c.coordinates["attack"], c.coordinates["arm"], c.coordinates["seed"]): c
        for c in cells.cells(session, study.id)
    }
    filling = fill(
        session, spec, layout, [p for p in layout.keys if p not in rows or rows[p].experiment_id is None]
    )
    planned = [
        (one, {"attack": places[0].row, "seed": places[0].seed}) for one, places in filling.experiments
    ]
    made = batch.add(context, session, study, planned) if planned else []
    experiments = {place: (experiment_id, arm) for place, (experiment_id, arm) in filling.found.items()}
    for experiment, (_, places) in zip(made, filling.experiments, strict=True):
        experiments |= {place: (experiment.id, place.arm) for place in places}
    used = cells.experiments(session, study.id)
    session.add_all(
        SweepExperiment(sweep_id=study.id, experiment_id=experiment_id, made=False, coordinates={})
        for experiment_id in sorted({found for found, _ in filling.found.values()} - set(used))
    )
    for place in layout.keys:
        if place not in experiments:
            continue
        if place not in rows:
            where = {"attack": place.row, "arm": place.arm, "seed": place.seed}
            rows[place] = SweepCell(sweep_id=study.id, number=len(rows), coordinates=where)
            session.add(rows[place])
        rows[place].experiment_id, rows[place].arm = experiments[place]
    session.flush()
    if experiments and not made and outbox.wants_ends(session, study.owner_id):
        outbox.look_at(session, [study.id])  # all of it was there


def _present(session: Session, study: Sweep, cells: Mapping[Place, SeedCell] | None = None) -> StudyOut:
    (known,) = _summaries(session, [study])
    found = (cells if cells is not None else matrix.seed_cells(session, study.id)).values()
    return StudyOut(
        **dict(known),
        spec=StudySpec.model_validate(study.spec),
        states=matrix.count(found),
        reused=sum(cell.reused for cell in found),
    )


def _summaries(session: Session, studies: Sequence[Sweep]) -> list[StudySummary]:
    ids = [study.id for study in studies]
    standings, counted = batch.standings(session, ids), repository.cell_counts(session, ids)
    return [
        StudySummary(
            id=study.id,
            name=study.name,
            created_at=study.created_at,
            cells=counted[study.id][0],
            links=_links(study.id),
            **dict(standings[study.id]),
        )
        for study in studies
    ]


def _links(study_id: str) -> Links:
    here = f"/v1/studies/{study_id}"
    return Links(
        self=here,
        experiments=f"/v1/experiments?sweep={study_id}",
        table=f"{here}/table",
        **{name: f"{here}:{name}" for name in ("extend", "cancel", "retry")},
    )
