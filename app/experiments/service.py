"""What can be done with experiments. Every function has committed when it returns."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import delete
from sqlalchemy.orm import Session

from app.core import pagination
from app.core.context import Context
from app.core.errors import ConflictError, InvalidError, NotFoundError, summary
from app.core.poll_cache import Answer
from app.core.validation import FieldError, shown
from app.data import resolve as uploads
from app.data.local_datasets import Known
from app.experiments import lifecycle, repository
from app.experiments.creation import Planned, create
from app.experiments.idempotency import once
from app.experiments.presentation import present
from app.experiments.repository import Filters, Order
from app.experiments.schemas import ExperimentOut, StageOut, Validation
from app.results.artifacts.storage import drop
from app.results.search import indexing
from app.specs.base import digest
from app.specs.checks import find_problems
from app.specs.experiment import ExperimentSpec
from app.specs.stages import PlannedStage, arm_keys, plan
from app.specs.status import TERMINAL
from app.tables.experiments import RUNNING, Experiment
from app.webhooks import outbox

_TAG = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,62}):(.{1,200})", re.DOTALL)


def submit(context: Context, spec: ExperimentSpec, key: str | None) -> tuple[dict[str, Any], bool]:
    """Write the experiment and the message that announces it, in one transaction.

    Returns the experiment as JSON, and True if it is a replay of the first answer to ``key``.
    Raises InvalidError for a spec that cannot run, and for a ``key`` that was used with another body.
    """
    ready = planned(context, spec)

    def make(session: Session) -> ExperimentOut:
        return present(session, create(session, [ready], context.settings.max_attempts), new=True)[0]

    return once(context, key, digest(spec), ExperimentOut, make)


def checked(context: Context, spec: ExperimentSpec) -> Known:
    """What is known of the spec's data set and victim, once the spec is found to fit them. Raises InvalidError."""
    faults = [
        FieldError(field=field, value=shown(text), message="the character U+0000 cannot be stored")
        for field, text in [("name", spec.name), *((f"tags.{k}", v) for k, v in spec.tags.items())]
        if "\0" in text
    ]
    with context.database.reading() as session:
        data = uploads.facts_of(session, spec.dataset, context.settings.datasets)
        victim = uploads.victim_of(session, spec)
    faults += [
        FieldError(field=p.field, value=shown(p.value), message=f"allowed: {p.allowed}")
        for p in (*find_problems(spec, data.facts), *uploads.problems(spec, victim, data.facts))
    ]
    if faults:
        raise InvalidError(summary(faults), faults)
    return data if victim is None else data._replace(victim=victim.sha256)


def planned(context: Context, spec: ExperimentSpec) -> Planned:
    """The spec with its arms' keys, once it is found to fit its data set. Raises InvalidError."""
    return Planned(spec, arm_keys(spec, stages(context, spec)))


def stages(context: Context, spec: ExperimentSpec) -> list[PlannedStage]:
    """What a worker would compute, once the spec is found to fit its data set. Raises InvalidError."""
    known = checked(context, spec)
    return plan(spec, known.version, known.victim)


def validate(context: Context, spec: ExperimentSpec) -> Validation:
    """A dry run: what would be computed, and what is already there."""
    found = stages(context, spec)
    with context.database.reading() as session:
        ready = repository.cached(session, [stage.key for stage in found])
    listed = [StageOut(kind=s.kind, arm=s.arm, seed=s.seed, key=s.key, cached=s.key in ready) for s in found]
    return Validation(
        spec=spec,
        spec_hash=spec.spec_hash,
        arms=list(spec.arms),
        stages=listed,
        cached=sum(stage.cached for stage in listed),
    )


def get(context: Context, experiment_id: str) -> ExperimentOut:
    """Raises NotFoundError."""
    with context.database.reading() as session:
        experiment = _found(repository.get(session, experiment_id), experiment_id)
        return present(session, [experiment])[0]


def poll(context: Context, experiment_id: str) -> Answer:
    """The same as JSON, for one query as long as nothing happens to the experiment. Raises NotFoundError."""
    with context.database.reading() as session:
        stamp = repository.stamp(session, experiment_id)
        if stamp is not None and (kept := context.poll_cache.get(experiment_id, stamp)) is not None:
            return kept
        experiment = _found(repository.get(session, experiment_id), experiment_id)
        answer = Answer.of(present(session, [experiment])[0].model_dump_json())
    return context.poll_cache.store(experiment_id, stamp, answer)


def listing(
    context: Context, filters: Filters, order: Order, cursor: str | None, limit: int
) -> tuple[list[ExperimentOut], str | None]:
    """One page, and the cursor of the next one if there is one. Raises BadRequestError for a bad cursor."""
    query = [asdict(filters), order]
    after = None
    if cursor is not None:
        created_at, last_id = pagination.decode(context.signer, query, cursor)
        after = (datetime.fromisoformat(created_at), last_id)
    with context.database.reading() as session:
        rows = repository.page(session, filters, order, after, limit + 1)
        shown_rows = rows[:limit]
        experiments = present(session, shown_rows)
    if len(rows) <= limit:
        return experiments, None
    last = shown_rows[-1]
    return experiments, pagination.encode(context.signer, query, [last.created_at.isoformat(), last.id])


def cancel(context: Context, experiment_id: str) -> ExperimentOut:
    """Ask an experiment to stop. Raises ConflictError if it has already ended otherwise."""
    with context.database.writing() as session:
        experiment = _found(lifecycle.lock(session, experiment_id), experiment_id)
        if experiment.status in ("succeeded", "failed"):
            raise ConflictError(
                f"the experiment has already {experiment.status}; only a queued or running one can be canceled"
            )
        lifecycle.cancel(session, experiment)
        return present(session, [experiment])[0]


def retry(context: Context, experiment_id: str) -> ExperimentOut:
    """Queue an ended experiment again; finished stages are reused. Raises ConflictError if it has not ended."""
    with context.database.writing() as session:
        experiment = _found(lifecycle.lock(session, experiment_id), experiment_id)
        if experiment.status not in TERMINAL:
            raise ConflictError(f"the experiment is {experiment.status}; only an ended one can be retried")
        lifecycle.restart(session, experiment, context.settings.max_attempts)
        return present(session, [experiment])[0]


def remove(context: Context, experiment_id: str) -> None:
    """Delete an experiment that does not run, its files, and all that is known of it."""
    with context.database.writing() as session:
        experiment = _found(lifecycle.lock(session, experiment_id), experiment_id)
        if experiment.status == RUNNING:
            raise ConflictError(
                f"the experiment is running; first POST /v1/experiments/{experiment_id}:cancel"
            )
        files = delete_rows(session, [experiment_id])
    drop(context.database, context.objects, files)


def delete_rows(session: Session, ids: Sequence[str]) -> set[str]:
    """Delete experiments that do not run and are locked. Returns their objects, which `drop` deletes after that, but
    for those that others need."""
    keys = repository.object_keys(session, ids)
    outbox.experiments_go(session, ids)
    indexing.forget(session, ids)
    session.execute(delete(Experiment).where(Experiment.id.in_(ids)))
    return keys


def _found(experiment: Experiment | None, experiment_id: str) -> Experiment:
    if experiment is None:
        raise NotFoundError(f"there is no experiment {shown(experiment_id)}")
    return experiment


def parse_tags(tags: Sequence[str]) -> list[tuple[str, str]]:
    """The key and value of each ``key:value``. Raises InvalidError."""
    pairs = []
    for text in tags:
        match = _TAG.fullmatch(text)
        if match is None:
            raise InvalidError.of("tag", text, "allowed: key:value, such as study:example")
        pairs.append((match[1], match[2]))
    return pairs
