"""Manifests, and reproductions: an experiment runs again without cached stages, and its numbers are compared."""

import json
from typing import Any

from sqlalchemy.orm import Session

from app.core.context import Context
from app.core.errors import ConflictError, NotFoundError
from app.core.validation import shown
from app.experiments.idempotency import once
from app.experiments.lifecycle import create
from app.experiments.planning import plan_experiment, runnable_spec
from app.experiments.presentation import present
from app.experiments.reproductions import repository
from app.experiments.reproductions.agreement import compare, environment, tolerance
from app.experiments.reproductions.schemas import ReproductionOut, ReproductionRef, Reproductions
from app.experiments.schemas import ExperimentOut
from app.specs.base import digest
from app.specs.status import TERMINAL
from app.tables.experiments import SUCCEEDED, Experiment, check_experiment, require_experiment
from app.tables.reproductions import Reproduction


def reproduce(context: Context, experiment_id: str, key: str | None) -> tuple[dict[str, Any], bool]:
    """Queue the same spec as a new experiment that takes nothing from the stage cache.

    Returns it as JSON, and True if it is a replay of the first answer to ``key``. Raises NotFoundError, and
    ConflictError if the experiment has not succeeded or a plug-in that it needs is missing.
    """
    with context.database.reading() as session:
        original = require_experiment(session, experiment_id)
        if original.status != SUCCEEDED:
            raise ConflictError(
                f"the experiment is {original.status}; only one that succeeded can be reproduced"
            )
        spec = runnable_spec(original)
    planned = plan_experiment(context, spec)

    def make(session: Session) -> ExperimentOut:
        (experiment,) = create(session, [planned], context.settings.max_attempts)
        session.add(Reproduction(experiment_id=experiment.id, original_id=experiment_id))
        return present(session, [experiment], in_sweeps=False)[0]

    return once(context, key, digest(["reproduce", experiment_id]), ExperimentOut, make)


def reproduction(context: Context, experiment_id: str) -> ReproductionOut:
    """How the numbers of a reproduction compare. Raises NotFoundError if the experiment reproduces no other."""
    with context.database.reading() as session:
        experiment = require_experiment(session, experiment_id)
        original_id = repository.original_of(session, experiment_id)
        if original_id is None:
            hint = f"POST /v1/experiments/{experiment_id}:reproduce creates one"
            raise NotFoundError(f"experiment {shown(experiment_id)} is not a reproduction; {hint}")
        original = session.get(Experiment, original_id)
        first = repository.numbers(session, original_id) if original is not None else {}
        second = repository.numbers(session, experiment_id)
        keys = [repository.manifest_key(session, i) for i in (original_id, experiment_id)]
    if original is None or experiment.status != SUCCEEDED:
        verdict = "pending" if original is not None and experiment.status not in TERMINAL else "unknown"
        return ReproductionOut(
            experiment_id=experiment_id,
            reproduces=original_id,
            status=experiment.status,
            verdict=verdict,
            tolerance=None,
            environment=[],
            metrics=[],
            agreeing=0,
        )
    before, after = (_manifest(context, key) for key in keys)
    allowed = tolerance(before, after)
    metrics = compare(first, second, allowed)
    agreeing = sum(metric.agrees for metric in metrics)
    return ReproductionOut(
        experiment_id=experiment_id,
        reproduces=original_id,
        status=experiment.status,
        verdict="agrees" if metrics and agreeing == len(metrics) else "differs",
        tolerance=allowed,
        environment=environment(before, after),
        metrics=metrics,
        agreeing=agreeing,
    )


def reproductions(context: Context, experiment_id: str) -> Reproductions:
    """The reproductions of an experiment."""
    with context.database.reading() as session:
        check_experiment(session, experiment_id)
        rows = repository.of(session, experiment_id)
    return Reproductions(
        reproductions=[
            ReproductionRef(experiment_id=i, status=status, link=f"/v1/experiments/{i}/reproduction")
            for i, status in rows
        ]
    )


def manifest(context: Context, experiment_id: str) -> bytes:
    """The manifest that the run wrote. Raises NotFoundError while there is none."""
    with context.database.reading() as session:
        experiment = require_experiment(session, experiment_id)
        key = repository.manifest_key(session, experiment_id)
        status = experiment.status
    data = context.objects.get(key) if key is not None else None
    if data is None:
        raise NotFoundError(
            f"experiment {shown(experiment_id)} is {status} and has no manifest; a run writes it when it ends"
        )
    return data


def _manifest(context: Context, key: str | None) -> dict[str, Any] | None:
    data = context.objects.get(key) if key is not None else None
    return json.loads(data) if data is not None else None
