"""What can be done with experiments. Every function has committed when it returns."""

import re
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import delete
from sqlalchemy.orm import Session

from app.core.context import Context
from app.core.errors import AppError, ConflictError, InvalidError, require
from app.core.pagination import paginate_by_age
from app.core.poll_cache import Answer
from app.data.resolve import stored_facts
from app.experiments import lifecycle, repository
from app.experiments.idempotency import once
from app.experiments.lifecycle import create
from app.experiments.planning import StoredStage, plan_experiment, stages_of
from app.experiments.presentation import present
from app.experiments.repository import Filters, Order, TagFilter
from app.experiments.schemas import LIST_FIELDS, ExperimentItem, ExperimentOut, StageOut, Validation
from app.results.artifacts.storage import delete_unreferenced
from app.results.search import indexing
from app.specs.base import digest
from app.specs.experiment import ExperimentSpec
from app.specs.facts import DatasetFacts
from app.specs.status import TERMINAL
from app.tables.experiments import RUNNING, Experiment, require_experiment
from app.webhooks import outbox

_TAG = re.compile(r"(-?)([A-Za-z0-9][A-Za-z0-9_.-]{0,62})(?::(.{1,200}))?", re.DOTALL)


def submit(context: Context, spec: ExperimentSpec, key: str | None) -> tuple[dict[str, Any], bool]:
    """Write the experiment and its outbox row in one transaction.

    Returns the experiment as JSON, and True if it is a replay of the first answer to ``key``.
    Raises InvalidError for a spec that cannot run, and for a ``key`` that was used with another body.
    """
    planned = plan_experiment(context, spec)

    def make(session: Session) -> ExperimentOut:
        return present(session, create(session, [planned], context.settings.max_attempts), in_sweeps=False)[0]

    return once(context, key, digest(spec), ExperimentOut, make)


def validate(context: Context, spec: ExperimentSpec) -> Validation:
    """A dry run: the stages of ``spec``, and which of them are cached. Raises InvalidError."""
    planned = plan_experiment(context, spec)
    with context.database.reading() as session:
        stages = _present_stages(session, planned.stored_stages)
    return Validation(
        spec=spec,
        spec_hash=spec.spec_hash,
        arms=list(spec.arms),
        stages=stages,
        cached=sum(stage.cached for stage in stages),
    )


def experiment_stages(context: Context, experiment_id: str) -> list[StageOut]:
    """The stages of an experiment; none if they were not stored and can no longer be planned.

    Raises NotFoundError.
    """
    with context.database.reading() as session:
        experiment = require_experiment(session, experiment_id)
        try:
            return _present_stages(session, stages_of(session, experiment, context.settings.datasets))
        except AppError:
            return []


def dataset_facts(context: Context, document: dict[str, Any]) -> DatasetFacts:
    """Facts of the dataset of a stored spec, with the sizes that it uses. Raises InvalidError if it is not here."""
    with context.database.reading() as session:
        return stored_facts(session, document, context.settings.datasets)


def get(context: Context, experiment_id: str) -> ExperimentOut:
    """Raises NotFoundError."""
    with context.database.reading() as session:
        return present(session, [require_experiment(session, experiment_id)])[0]


def poll(context: Context, experiment_id: str) -> Answer:
    """The JSON of `get`, at the price of one query as long as the experiment does not change. Raises NotFoundError.

    A cached answer is valid only while every field of `ExperimentOut` is constant, is covered by `version_key`, or
    changes in a transaction that also writes an event. A test makes sure that each field is one of these.
    """
    with context.database.reading() as session:
        version = repository.version_key(session, experiment_id)
        if version is not None and (answer := context.poll_cache.get(experiment_id, version)) is not None:
            return answer
        experiment = require_experiment(session, experiment_id)
        in_sweep = version is None or version.sweep_id is not None
        answer = Answer.of(present(session, [experiment], in_sweeps=in_sweep)[0].model_dump_json())
    return context.poll_cache.store(experiment_id, version, answer)


def listing(
    context: Context,
    filters: Filters,
    order: Order,
    cursor: str | None,
    limit: int,
    fields: Collection[str] = LIST_FIELDS,
) -> tuple[list[ExperimentItem], str | None]:
    """One page, and the cursor of the next one if there is one. Only ``fields`` are complete, see `present`.

    Raises BadRequestError for a bad cursor.
    """
    with context.database.reading() as session:
        rows, following = paginate_by_age(
            context.signer,
            [asdict(filters), order],
            cursor,
            limit,
            lambda after, most: repository.page(session, filters, order, after, most),
        )
        return present(session, rows, fields), following


def cancel(context: Context, experiment_id: str) -> ExperimentOut:
    """Ask an experiment to stop. Raises NotFoundError, and ConflictError if it has succeeded or failed."""
    with context.database.writing() as session:
        experiment = _lock(session, experiment_id)
        if experiment.status in ("succeeded", "failed"):
            raise ConflictError(
                f"the experiment has already {experiment.status}; only a queued or running one can be canceled"
            )
        lifecycle.cancel(session, experiment)
        return present(session, [experiment])[0]


def retry(context: Context, experiment_id: str) -> ExperimentOut:
    """Queue an ended experiment again; finished stages are reused.

    Raises NotFoundError, and ConflictError if it has not ended or a plug-in that it needs is missing.
    """
    with context.database.writing() as session:
        experiment = _lock(session, experiment_id)
        if experiment.status not in TERMINAL:
            raise ConflictError(f"the experiment is {experiment.status}; only an ended one can be retried")
        lifecycle.restart(session, experiment, context.settings.max_attempts)
        return present(session, [experiment])[0]


def remove(context: Context, experiment_id: str) -> None:
    """Delete an experiment with its results and files. Raises NotFoundError, and ConflictError while it runs."""
    with context.database.writing() as session:
        if _lock(session, experiment_id).status == RUNNING:
            raise ConflictError(
                f"the experiment is running; first POST /v1/experiments/{experiment_id}:cancel"
            )
        object_keys = delete_rows(session, [experiment_id])
    delete_unreferenced(context.database, context.objects, object_keys)


def delete_rows(session: Session, ids: Sequence[str]) -> set[str]:
    """Delete experiments that are locked and do not run.

    Returns the keys of their objects. After the commit the caller deletes those that no other experiment uses.
    """
    object_keys = repository.object_keys(session, ids)
    outbox.check_sweeps_before_deletion(session, ids)
    indexing.forget(session, ids)
    session.execute(delete(Experiment).where(Experiment.id.in_(ids)))
    return object_keys


def parse_tags(tags: Sequence[str]) -> tuple[TagFilter, ...]:
    """The filters ``key:value`` or ``key``, with ``-`` before those that must not hold. Raises InvalidError."""
    filters = []
    for text in tags:
        match = _TAG.fullmatch(text)
        if match is None:
            allowed = (
                "key:value, such as study:example, or key; with - before it: experiments without that tag"
            )
            raise InvalidError.of("tag", text, f"allowed: {allowed}")
        minus, key, value = match.groups()
        filters.append(TagFilter(key, value, bool(minus)))
    return tuple(filters)


def _lock(session: Session, experiment_id: str) -> Experiment:
    return require(lifecycle.lock(session, experiment_id), "experiment", experiment_id)


def _present_stages(session: Session, stages: Sequence[StoredStage]) -> list[StageOut]:
    cached = repository.cached(session, [stage["key"] for stage in stages])
    return [StageOut(**stage, cached=stage["key"] in cached) for stage in stages]
