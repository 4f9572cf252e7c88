"""Sweeps and studies as responses."""

from collections.abc import Mapping, Sequence

from sqlalchemy.orm import Session

from app.experiments.schemas import ArmSummary
from app.specs.status import TERMINAL, Status
from app.specs.stored import StoredSpec
from app.specs.sweep import SweepSpec
from app.sweeps import matrix, repository
from app.sweeps.matrix import SeedCell
from app.sweeps.planning import Coordinates
from app.sweeps.schemas import (
    BatchOut,
    BatchProgress,
    BatchSummary,
    CellOut,
    Counts,
    StudyLinks,
    StudyOut,
    StudySummary,
    SweepLinks,
    SweepOut,
    SweepSummary,
)
from app.tables.experiments import CANCELED, FAILED, RUNNING, Experiment
from app.tables.sweeps import STUDY, SWEEP, Sweep, SweepCell

PATHS = {SWEEP: "/v1/sweeps", STUDY: "/v1/studies"}


def path_of(batch: Sweep) -> str:
    """The path of the batch in the API."""
    return f"{PATHS[batch.kind]}/{batch.id}"


def present(session: Session, batch: Sweep, cells: Mapping[Coordinates, SeedCell] | None = None) -> BatchOut:
    """The batch and its status. ``cells`` are those of a study if they are loaded already."""
    (summary,) = summarize(session, [batch])
    if batch.kind == SWEEP:
        return SweepOut(**dict(summary), spec=SweepSpec.model_validate(batch.spec))
    seed_cells = (cells if cells is not None else matrix.load_cells(session, batch.id)).values()
    return StudyOut(
        **dict(summary),
        spec=batch.spec,
        states=matrix.count_states(seed_cells),
        reused=sum(cell.reused for cell in seed_cells),
    )


def summarize(session: Session, batches: Sequence[Sweep]) -> list[BatchSummary]:
    """The batches as lists show them, in a number of queries that does not depend on how many there are."""
    ids = [batch.id for batch in batches]
    progress, cells = progress_of(session, ids), repository.count_cells(session, ids)
    return [_summary(batch, progress[batch.id], *cells[batch.id]) for batch in batches]


def _summary(batch: Sweep, progress: BatchProgress, cells: int, filled: int) -> BatchSummary:
    path = path_of(batch)
    fields = {"id": batch.id, "name": batch.name, "created_at": batch.created_at, "cells": cells}
    fields |= dict(progress)
    links = {"self": path, "experiments": f"/v1/experiments?sweep={batch.id}"}
    links |= {action: f"{path}:{action}" for action in ("cancel", "retry")}
    if batch.kind == SWEEP:
        return SweepSummary(
            **fields, missing=cells - filled, links=SweepLinks(**links, cells=f"{path}/cells")
        )
    return StudySummary(**fields, links=StudyLinks(**links, table=f"{path}/table", extend=f"{path}:extend"))


def progress_of(session: Session, ids: Sequence[str]) -> dict[str, BatchProgress]:
    """The progress of each batch, in one query."""
    return {
        batch_id: _combine(counts) for batch_id, counts in repository.count_by_status(session, ids).items()
    }


def _combine(by_status: dict[str, tuple[int, float]]) -> BatchProgress:
    counts = {status: count for status, (count, _) in by_status.items()}
    _, running = by_status.get(RUNNING, (0, 0.0))
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
    return BatchProgress(status=status, fraction=round(fraction, 6), experiments=Counts(**counts))


def present_cell(
    cell: SweepCell, experiment: Experiment | None, summaries: dict[str, dict[str, dict[str, float | None]]]
) -> CellOut:
    """A cell of a sweep. ``summaries`` are means by experiment, arm and metric."""
    place = {"number": cell.number, "coordinates": cell.coordinates}
    if experiment is None:
        return CellOut(**place, status="missing", fraction=0.0, experiment_id=None, summary=[])
    means = summaries[experiment.id]
    return CellOut(
        **place,
        status=experiment.status,
        fraction=experiment.progress.get("fraction", 0.0),
        experiment_id=experiment.id,
        summary=[
            ArmSummary(arm=arm, **means[arm]) for arm in StoredSpec(experiment.spec).arms if arm in means
        ],
    )
