"""Queries about sweeps and studies. On a request's session they see only the owner's rows.

SQLite keeps no statistics about tables. The outer joins, ``coalesce`` and a limit below keep it from starting with all
experiments or results of an owner; tests/app/test_plans.py checks the query plans.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple, TypeVar

from sqlalchemy import ColumnElement, Row, and_, exists, func, or_, select, tuple_
from sqlalchemy.orm import Session, aliased

from app.tables.experiments import FAILED, SUCCEEDED, Experiment
from app.tables.results import ArmNote, ResultValue
from app.tables.sweeps import ArmKey, Sweep, SweepCell, SweepExperiment

MAX_EXPERIMENTS = 1_000_000
"""More experiments than a batch can have."""
MAX_KEYS = 1000
"""Maximum number of keys in one statement."""
CLEAN_ACCURACY = "clean_accuracy"
ATTACK_SUCCESS = "attack_success_rate"
MEASURED = (CLEAN_ACCURACY, ATTACK_SUCCESS)
"""Metrics in a study's table that are stored; the third one is derived from them."""
T = TypeVar("T")


class ArmRef(NamedTuple):
    """An arm of an experiment."""

    experiment_id: str
    arm: str


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Parts of at most ``size`` items. Databases limit the number of values in a statement."""
    return (items[start : start + size] for start in range(0, len(items), size))


def get(session: Session, kind: str, batch_id: str, *, lock: bool = False) -> Sweep | None:
    """The batch, if it is of this kind. Only the holder of its ``lock`` adds or removes experiments."""
    query = select(Sweep).where(Sweep.id == batch_id, Sweep.kind == kind)
    return session.scalars(query.with_for_update() if lock else query).one_or_none()


def page(session: Session, kind: str, after: tuple[datetime, str] | None, limit: int) -> Sequence[Sweep]:
    """At most ``limit`` batches after ``after``, newest first."""
    query = select(Sweep).where(Sweep.kind == kind)
    if after is not None:
        query = query.where(tuple_(Sweep.created_at, Sweep.id) < after)
    return session.scalars(query.order_by(Sweep.created_at.desc(), Sweep.id.desc()).limit(limit)).all()


def count_by_status(session: Session, ids: Sequence[str]) -> dict[str, dict[str, tuple[int, float]]]:
    """By batch and status, the number of experiments and the sum of the fractions that they have completed."""
    fraction = func.coalesce(Experiment.progress["fraction"].as_float(), 0.0)
    rows = session.execute(
        select(SweepExperiment.sweep_id, Experiment.status, func.count(), func.sum(fraction))
        .outerjoin(Experiment, Experiment.id == SweepExperiment.experiment_id)
        .where(SweepExperiment.sweep_id.in_(ids))
        .group_by(SweepExperiment.sweep_id, Experiment.status)
    )
    counts: dict[str, dict[str, tuple[int, float]]] = {batch_id: {} for batch_id in ids}
    for batch_id, status, count, completed in rows:
        if status is not None:
            counts[batch_id][status] = (count, completed)
    return counts


def count_cells(session: Session, ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """By batch, the number of cells, and of those among them that have an experiment."""
    rows = session.execute(
        select(SweepCell.sweep_id, func.count(), func.count(SweepCell.experiment_id))
        .where(SweepCell.sweep_id.in_(ids))
        .group_by(SweepCell.sweep_id)
    )
    return {batch_id: (cells, filled) for batch_id, cells, filled in rows}


def lock_experiments(
    session: Session, batch_id: str, statuses: Sequence[str], *, submitted: bool
) -> Sequence[Experiment]:
    """The batch's experiments with these statuses, locked in an order that rules out deadlocks.

    ``submitted``: only those that the batch submitted itself.
    """
    of_batch = select(SweepExperiment.experiment_id).where(SweepExperiment.sweep_id == batch_id)
    # SQLite evaluates a subquery with a limit first, instead of merging it into the rest.
    ids = (of_batch.where(SweepExperiment.made) if submitted else of_batch).limit(MAX_EXPERIMENTS).subquery()
    query = select(Experiment).join(ids, Experiment.id == ids.c.experiment_id).where(_has_status(statuses))
    query = query.order_by(Experiment.id).with_for_update(of=Experiment)
    return session.scalars(query.execution_options(populate_existing=True)).all()


def _has_status(statuses: Sequence[str]) -> ColumnElement[bool]:
    """Succeeded experiments with a failed arm count as failed too."""
    condition = Experiment.status.in_(statuses)
    if FAILED not in statuses:
        return condition
    arm_failed = exists().where(ArmNote.experiment_id == Experiment.id, ArmNote.kind == "error")
    return or_(condition, and_(Experiment.status == SUCCEEDED, arm_failed))


def used_elsewhere(session: Session, batch_id: str) -> set[str]:
    """Experiments that this batch submitted and that another batch uses too."""
    other = aliased(SweepExperiment)
    shared = exists().where(
        other.experiment_id == SweepExperiment.experiment_id, other.sweep_id != SweepExperiment.sweep_id
    )
    query = select(SweepExperiment.experiment_id).where(
        SweepExperiment.sweep_id == batch_id, SweepExperiment.made, shared
    )
    return set(session.scalars(query))


def sweep_cells(
    session: Session, sweep_id: str, status: str | None, after: Sequence[int] | None, limit: int
) -> Sequence[Row[SweepCell, Experiment]]:
    """Cells after the position ``[number]``, each with its experiment or None; ``status`` may be "missing"."""
    number = int(after[0]) if after is not None else -1
    query = (
        select(SweepCell, Experiment)
        .outerjoin(Experiment, Experiment.id == SweepCell.experiment_id)
        .where(SweepCell.sweep_id == sweep_id, SweepCell.number > number)
    )
    if status == "missing":
        query = query.where(SweepCell.experiment_id.is_(None))
    elif status is not None:
        query = query.where(func.coalesce(Experiment.status, "") == status)
    return session.execute(query.order_by(SweepCell.number).limit(limit)).all()


def study_cells(session: Session, study_id: str) -> Sequence[Row[SweepCell, str, bool]]:
    """Every cell by number, with its experiment's status and whether the study submitted it, or None twice."""
    of_study = and_(
        SweepExperiment.sweep_id == SweepCell.sweep_id,
        SweepExperiment.experiment_id == SweepCell.experiment_id,
    )
    query = (
        select(SweepCell, Experiment.status, SweepExperiment.made)
        .outerjoin(SweepExperiment, of_study)
        .outerjoin(Experiment, Experiment.id == SweepExperiment.experiment_id)
        .where(SweepCell.sweep_id == study_id)
    )
    return session.execute(query.order_by(SweepCell.number)).all()


def study_values(session: Session, study_id: str) -> Sequence[Row[str, str, int, str, float | None]]:
    """(experiment, arm, seed, metric, value) of the metrics in ``MEASURED``."""
    columns = (
        ResultValue.experiment_id,
        ResultValue.arm,
        ResultValue.seed,
        ResultValue.metric,
        ResultValue.value,
    )
    return session.execute(
        select(*columns)
        .join(SweepExperiment, SweepExperiment.experiment_id == ResultValue.experiment_id)
        .where(SweepExperiment.sweep_id == study_id, func.coalesce(ResultValue.metric, "").in_(MEASURED))
    ).all()


def count_warnings(session: Session, study_id: str) -> dict[tuple[str | None, str | None, int], int]:
    """By experiment, arm and seed, the number of warnings."""
    place = (ArmNote.experiment_id, ArmNote.arm, ArmNote.seed)
    rows = session.execute(
        select(*place, func.count())
        .join(SweepExperiment, SweepExperiment.experiment_id == ArmNote.experiment_id)
        .where(SweepExperiment.sweep_id == study_id, ArmNote.kind == "warning")
        .group_by(*place)
    )
    return {(experiment_id, arm, seed): count for experiment_id, arm, seed, count in rows}


def find_arms(session: Session, keys: Sequence[str]) -> dict[str, ArmRef]:
    """By key, the arm of the oldest succeeded experiment that has these numbers.

    Nobody can delete these experiments until the transaction ends.
    """
    has_results = exists().where(
        ResultValue.experiment_id == ArmKey.experiment_id,
        ResultValue.arm == ArmKey.arm,
        ResultValue.seed == ArmKey.seed,
        ResultValue.metric == CLEAN_ACCURACY,
        ResultValue.value.is_not(None),
    )
    arms: dict[str, ArmRef] = {}
    for part in chunks(keys, MAX_KEYS):
        rows = session.execute(
            select(ArmKey.key, ArmKey.experiment_id, ArmKey.arm)
            .join(Experiment, Experiment.id == ArmKey.experiment_id)
            .where(ArmKey.key.in_(part), Experiment.status == SUCCEEDED, has_results)
            .order_by(Experiment.created_at.desc(), Experiment.id.desc())  # older ones overwrite newer ones
            .with_for_update(read=True, key_share=True, of=Experiment)
        )
        arms |= {key: ArmRef(experiment_id, arm) for key, experiment_id, arm in rows}
    return arms
