"""From rows to the experiments of the API."""

from collections.abc import Sequence

from sqlalchemy.orm import Session

from app.experiments import repository
from app.experiments.schemas import ArmSummary, AttemptOut, ExperimentOut, Failure, Links, Progress, SweepRef
from app.specs.stored import StoredSpec
from app.tables.experiments import Experiment


def present(session: Session, experiments: Sequence[Experiment], *, new: bool = False) -> list[ExperimentOut]:
    """The experiments with their attempts and summaries: three more queries for any number of experiments.

    ``new``: they were just submitted and belong to no sweep, so nothing has to be queried.
    """
    tried = [experiment.id for experiment in experiments if experiment.attempt]
    attempts = repository.attempts(session, tried) if tried else {}
    summaries = repository.summaries(session, tried) if tried else {}
    sweeps = {} if new else repository.sweeps(session, [experiment.id for experiment in experiments])
    return [_one(e, attempts.get(e.id, ()), summaries.get(e.id, {}), sweeps.get(e.id)) for e in experiments]


def _one(
    experiment: Experiment,
    attempts: Sequence[object],
    summary: dict[str, dict[str, float | None]],
    sweep: object | None,
) -> ExperimentOut:
    return ExperimentOut(
        id=experiment.id,
        name=experiment.name,
        status=experiment.status,
        spec=experiment.spec,
        spec_hash=experiment.spec_hash,
        created_at=experiment.created_at,
        queued_at=experiment.queued_at,
        started_at=experiment.started_at,
        finished_at=experiment.finished_at,
        cancel_requested_at=experiment.cancel_requested_at,
        progress=Progress.model_validate(experiment.progress),
        attempts=[AttemptOut.model_validate(attempt, from_attributes=True) for attempt in attempts],
        attempts_left=experiment.attempts_left,
        summary=[
            ArmSummary(arm=arm, **summary[arm]) for arm in StoredSpec(experiment.spec).arms if arm in summary
        ],
        error=Failure.model_validate(experiment.error) if experiment.error else None,
        sweep=SweepRef.model_validate(sweep, from_attributes=True) if sweep is not None else None,
        links=_links(experiment.id),
    )


def _links(experiment_id: str) -> Links:
    here = f"/v1/experiments/{experiment_id}"
    parts = ("results", "metrics", "events", "logs", "artifacts", "predict")
    return Links(
        self=here, cancel=f"{here}:cancel", retry=f"{here}:retry", **{p: f"{here}/{p}" for p in parts}
    )
