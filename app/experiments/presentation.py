"""From rows to the experiments of the API."""

from collections.abc import Collection, Sequence

from sqlalchemy.orm import Session

from app.experiments import repository
from app.experiments.schemas import (
    ArmSummary,
    AttemptOut,
    ExperimentItem,
    ExperimentOut,
    Failure,
    Links,
    Progress,
    SweepRef,
)
from app.specs.stored import StoredSpec, completed
from app.tables.experiments import Experiment

ALL = ExperimentOut.model_fields.keys()


def present(
    session: Session,
    experiments: Sequence[Experiment],
    fields: Collection[str] = ALL,
    *,
    in_sweeps: bool = True,
) -> list[ExperimentItem]:
    """The experiments with their attempts, summaries and sweeps: a query for each of the three that is in ``fields``.

    Without them in ``fields`` these three are empty, and the spec is as it was stored.
    Not ``in_sweeps``: none of them was submitted by a sweep or study, so that this is not queried.
    """
    ids = [experiment.id for experiment in experiments]
    tried = [experiment.id for experiment in experiments if experiment.attempt]
    attempts = repository.attempts(session, tried) if tried and "attempts" in fields else {}
    summaries = repository.summaries(session, tried) if tried and "summary" in fields else {}
    sweeps = repository.sweeps(session, ids) if in_sweeps and "sweep" in fields else {}
    return [
        _one(e, "spec" in fields, attempts.get(e.id, ()), summaries.get(e.id, {}), sweeps.get(e.id))
        for e in experiments
    ]


def _one(
    experiment: Experiment,
    with_spec: bool,
    attempts: Sequence[object],
    summary: dict[str, dict[str, float | None]],
    sweep: object | None,
) -> ExperimentItem:
    return ExperimentItem(
        id=experiment.id,
        name=experiment.name,
        status=experiment.status,
        spec=completed(experiment.spec) if with_spec else experiment.spec,
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
