"""Cached stages that go: those of ended reproductions, those that nobody used for long, the oldest for want of space.

A stage that a worker computes, and one that a queued or running experiment needs, is never touched. A stage that went
is computed again by whoever needs it.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from functools import cached_property

from sqlalchemy import ColumnElement, delete, exists, or_, select
from sqlalchemy.orm import Session

from app.core.context import Context
from app.core.database import utcnow
from app.core.errors import AppError
from app.core.objects import ObjectStoreError
from app.experiments.planning import plan_again, runnable_spec
from app.operations.housekeeping.report import Tally
from app.settings import RetentionPolicy
from app.specs.stages import LAB_VERSION
from app.specs.status import TERMINAL
from app.tables.experiments import QUEUED, RUNNING, Experiment, Stage

BATCH = 200


def stage_key(key: str) -> str:
    """Where a stage lies."""
    return f"stages/{key}.safetensors"


def checkpoint_key(key: str) -> str:
    """Where the checkpoint of a stage lies that is not finished."""
    return f"checkpoints/{key}"


class InUse:
    """Keys of the stages that queued and running experiments need."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @property
    def keys(self) -> set[str]:
        return self._found[0]

    @property
    def unknown(self) -> str | None:
        """An experiment whose stages cannot be told here, because its data set is elsewhere."""
        return self._found[1]

    @cached_property
    def _found(self) -> tuple[set[str], str | None]:
        context, keys, unknown = self._context, set[str](), None
        query = select(Experiment.id, Experiment.lab_version, Experiment.stages)
        query = query.where(Experiment.status.in_((QUEUED, RUNNING)))
        outdated = []
        with context.database.whole.streaming() as session:
            for experiment_id, lab_version, stages in session.execute(
                query.execution_options(yield_per=BATCH)
            ):
                if (
                    stages is None or lab_version != LAB_VERSION
                ):  # a worker will compute them under other keys
                    outdated.append(experiment_id)
                else:
                    keys.update(stage["key"] for stage in stages)
        for experiment_id in outdated:
            with context.database.whole.reading() as session:
                experiment = session.get(Experiment, experiment_id)
                if experiment is None:
                    continue
                try:
                    planned = plan_again(session, runnable_spec(experiment), context.settings.datasets)
                except AppError:
                    unknown = experiment_id
                else:
                    keys.update(stage.key for stage in planned.stages)
        return keys, unknown


def private(context: Context, grace: timedelta, delete: bool, tally: Tally) -> int:
    """Stages of reproductions that are deleted or ended: nobody else can use them."""
    ended = exists().where(
        Experiment.id == Stage.experiment_id,
        or_(Experiment.status.not_in(TERMINAL), Experiment.finished_at >= utcnow() - grace),
    )
    what = "stages of reproductions that have ended"
    return _sweep(context, [Stage.experiment_id.is_not(None), ~ended], None, None, delete, tally, what)


def by_age(context: Context, policy: RetentionPolicy, used: InUse, delete: bool, tally: Tally) -> int:
    """Stages that nobody used for ``stage_days``."""
    if policy.stage_days is None or _unsure(used, tally):
        return 0
    what = f"nobody used them for {policy.stage_days:g} days"
    return _sweep(context, [Stage.last_used_at < _since(policy)], used, None, delete, tally, what)


def by_size(
    context: Context, policy: RetentionPolicy, used: InUse, excess: int, delete: bool, tally: Tally
) -> int:
    """Those that were used longest ago, until so many bytes are free."""
    if _unsure(used, tally):
        return 0
    young = [Stage.last_used_at >= _since(policy)] if policy.stage_days is not None else []
    what = f"the store may hold {policy.max_bytes} bytes, and these were used longest ago"
    return _sweep(context, [Stage.ready_at.is_not(None), *young], used, excess, delete, tally, what)


def _since(policy: RetentionPolicy) -> datetime:
    return utcnow() - timedelta(days=policy.stage_days or 0)


def _unsure(used: InUse, tally: Tally) -> bool:
    if used.unknown is not None:
        tally.remark(f"stages stay: those of experiment {used.unknown} cannot be told on this machine")
    return used.unknown is not None


def free() -> ColumnElement[bool]:
    """No worker computes the stage."""
    return or_(Stage.owner.is_(None), Stage.lease_expires_at < utcnow())


def _sweep(
    context: Context,
    conditions: Sequence[ColumnElement[bool]],
    used: InUse | None,
    excess: int | None,
    delete: bool,
    tally: Tally,
    what: str,
) -> int:
    freed = 0
    for rows in _pages(context, conditions):
        chosen: list[tuple[str, int]] = []
        for key, size in rows:
            if excess is not None and freed + sum(size for _, size in chosen) >= excess:
                break
            if used is None or key not in used.keys:
                chosen.append((key, size))
        if delete and chosen:
            gone = _remove(context, [key for key, _ in chosen], conditions, tally)
            chosen = [(key, size) for key, size in chosen if key in gone]
        for key, size in chosen:
            tally.add("stages", what, stage_key(key), size)
        freed += sum(size for _, size in chosen)
        if excess is not None and freed >= excess:
            break
    return freed


def _pages(context: Context, conditions: Sequence[ColumnElement[bool]]) -> Iterator[list[tuple[str, int]]]:
    """Key and bytes, those used longest ago first."""
    query = select(Stage.key, Stage.size).where(free(), *conditions).order_by(Stage.last_used_at, Stage.key)
    with context.database.whole.streaming() as session:
        for rows in session.execute(query.execution_options(yield_per=BATCH)).partitions():
            yield [(key, size or 0) for key, size in rows]


def _remove(
    context: Context, keys: Sequence[str], conditions: Sequence[ColumnElement[bool]], tally: Tally
) -> set[str]:
    """Delete the rows that still fit, then their objects. Returns their keys."""
    with context.database.whole.writing() as session:
        gone = _delete_rows(session, keys, conditions)
    try:
        context.objects.delete_all([where(key) for key in gone for where in (stage_key, checkpoint_key)])
    except ObjectStoreError as error:
        tally.remark(f"files were left behind, the next sweep finds them: {error}")
    return gone


def _delete_rows(
    session: Session, keys: Sequence[str], conditions: Sequence[ColumnElement[bool]]
) -> set[str]:
    deleted = delete(Stage).where(Stage.key.in_(keys), free(), *conditions).returning(Stage.key)
    return set(session.scalars(deleted.execution_options(synchronize_session=False)))
