"""Deletes cached stages: those of ended reproductions, those not used for long, and the oldest to save space.

A stage that a worker computes, or that a queued or running experiment needs, is never deleted. A deleted stage is
computed again when it is needed.
"""

from collections.abc import Sequence
from datetime import timedelta
from functools import cached_property

from sqlalchemy import ColumnElement, delete, exists, or_, select

from app.core.context import Context
from app.core.database import from_now, utcnow
from app.core.errors import AppError
from app.core.objects import ObjectStoreError
from app.experiments.planning import plan_again, runnable_spec
from app.operations.housekeeping.report import Run
from app.specs.stages import LAB_VERSION
from app.specs.status import TERMINAL
from app.tables.experiments import QUEUED, RUNNING, Experiment, Stage

BATCH = 200
Conditions = Sequence[ColumnElement[bool]]


def stage_key(key: str) -> str:
    """The object key of a stage."""
    return f"stages/{key}.safetensors"


def checkpoint_key(key: str) -> str:
    """The object key of the checkpoint of an unfinished stage."""
    return f"checkpoints/{key}"


class NeededStages:
    """Keys of the stages that queued and running experiments need, computed at the first use."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @property
    def keys(self) -> set[str]:
        return self._planned[0]

    @property
    def undecided(self) -> str | None:
        """An experiment whose stages cannot be planned here, because its data set is not on this machine."""
        return self._planned[1]

    @cached_property
    def _planned(self) -> tuple[set[str], str | None]:
        context, keys, undecided = self._context, set[str](), None
        query = select(Experiment.id, Experiment.lab_version, Experiment.stages)
        query = query.where(Experiment.status.in_((QUEUED, RUNNING)))
        outdated = []
        with context.database.whole.streaming() as session:
            for experiment_id, lab_version, stages in session.execute(
                query.execution_options(yield_per=BATCH)
            ):
                # A worker of this lab version will compute older plans under other keys.
                if stages is None or lab_version != LAB_VERSION:
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
                    undecided = experiment_id
                else:
                    keys.update(stage.key for stage in planned.stages)
        return keys, undecided


def delete_reproduction_stages(run: Run) -> int:
    """Stages of deleted or ended reproductions, which no other experiment uses. Returns the bytes freed."""
    grace = timedelta(hours=run.policy.grace_hours)
    recent = exists().where(
        Experiment.id == Stage.experiment_id,
        or_(Experiment.status.not_in(TERMINAL), Experiment.finished_at >= utcnow() - grace),
    )
    what = "stages of reproductions that have ended"
    return _delete_stages(run, [Stage.experiment_id.is_not(None), ~recent], what)


def delete_unused_stages(run: Run, needed: NeededStages) -> int:
    """Stages not used for ``stage_days``. Returns the bytes freed."""
    days = run.policy.stage_days
    if days is None or _is_undecided(run, needed):
        return 0
    old = Stage.last_used_at < utcnow() - timedelta(days=days)
    return _delete_stages(run, [old], f"not used for {days:g} days", needed)


def delete_oldest_stages(run: Run, needed: NeededStages, excess: int) -> int:
    """The least recently used stages, until ``excess`` bytes are freed. Returns the bytes freed."""
    if excess <= 0 or _is_undecided(run, needed):
        return 0
    conditions: list[ColumnElement[bool]] = [Stage.ready_at.is_not(None)]
    if (days := run.policy.stage_days) is not None:  # in a dry run, older ones are still there
        conditions.append(Stage.last_used_at >= utcnow() - timedelta(days=days))
    what = f"the least recently used, to store at most {run.policy.max_bytes} bytes"
    return _delete_stages(run, conditions, what, needed, excess)


def _is_undecided(run: Run, needed: NeededStages) -> bool:
    if needed.undecided is not None:
        run.report.remark(
            f"stages are kept: those of experiment {needed.undecided} cannot be determined on this machine"
        )
    return needed.undecided is not None


def is_idle() -> ColumnElement[bool]:
    """No worker computes the stage."""
    return or_(Stage.owner.is_(None), Stage.lease_expires_at < from_now())


def _delete_stages(
    run: Run,
    conditions: Conditions,
    what: str,
    needed: NeededStages | None = None,
    excess: int | None = None,
) -> int:
    """Idle stages that meet ``conditions`` and are not ``needed``, least recently used first."""
    freed = 0
    query = select(Stage.key, Stage.size).where(is_idle(), *conditions)
    query = query.order_by(Stage.last_used_at, Stage.key).execution_options(yield_per=BATCH)
    with run.context.database.whole.streaming() as session:
        for rows in session.execute(query).partitions():
            chosen: dict[str, int] = {}
            for key, size in rows:
                if excess is not None and freed + sum(chosen.values()) >= excess:
                    break
                if needed is None or key not in needed.keys:
                    chosen[key] = size or 0
            if run.delete and chosen:
                deleted = _delete_rows_and_objects(run, list(chosen), conditions)
                chosen = {key: size for key, size in chosen.items() if key in deleted}
            for key, size in chosen.items():
                run.report.add("stages", what, stage_key(key), size)
            freed += sum(chosen.values())
            if excess is not None and freed >= excess:
                break
    return freed


def _delete_rows_and_objects(run: Run, keys: Sequence[str], conditions: Conditions) -> set[str]:
    """Delete the rows that still meet the conditions, then their objects. Returns their keys."""
    rows = delete(Stage).where(Stage.key.in_(keys), is_idle(), *conditions).returning(Stage.key)
    with run.context.database.whole.writing() as session:
        deleted = set(session.scalars(rows.execution_options(synchronize_session=False)))
    try:
        objects = [object_key(key) for key in deleted for object_key in (stage_key, checkpoint_key)]
        run.context.objects.delete_all(objects)
    except ObjectStoreError as error:
        run.report.remark(f"some files were not deleted, the next run will: {error}")
    return deleted
