"""Queries about sweeps and studies. On a request's session they see the owner's rows alone.

Outer joins have SQLite, which keeps no statistics, begin with the sweeps and not with all experiments of the owner.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Row, and_, exists, func, or_, select, tuple_
from sqlalchemy.orm import Session, aliased

from app.tables.experiments import FAILED, RUNNING, SUCCEEDED, Experiment
from app.tables.results import ArmNote
from app.tables.sweeps import Sweep, SweepCell, SweepExperiment

NEVER_SO_MANY = 1_000_000
"""Experiments of a sweep; see `app.specs.sweep` and `app.specs.study` for how many there may be."""


def get(session: Session, kind: str, sweep_id: str) -> Sweep | None:
    return session.scalars(select(Sweep).where(Sweep.id == sweep_id, Sweep.kind == kind)).one_or_none()


def lock(session: Session, kind: str, sweep_id: str) -> Sweep | None:
    """The sweep's row, locked until the transaction ends: only its holder adds or removes experiments."""
    query = select(Sweep).where(Sweep.id == sweep_id, Sweep.kind == kind).with_for_update()
    return session.scalars(query).one_or_none()


def page(session: Session, kind: str, after: tuple[datetime, str] | None, limit: int) -> Sequence[Sweep]:
    """At most ``limit`` sweeps behind ``after``, the newest first."""
    query = select(Sweep).where(Sweep.kind == kind)
    if after is not None:
        query = query.where(tuple_(Sweep.created_at, Sweep.id) < after)
    return session.scalars(query.order_by(Sweep.created_at.desc(), Sweep.id.desc()).limit(limit)).all()


def counts(session: Session, ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """By sweep, how many of its experiments are in each state."""
    rows = session.execute(
        select(SweepExperiment.sweep_id, Experiment.status, func.count())
        .outerjoin(Experiment, Experiment.id == SweepExperiment.experiment_id)
        .where(SweepExperiment.sweep_id.in_(ids))
        .group_by(SweepExperiment.sweep_id, Experiment.status)
    )
    found: dict[str, dict[str, int]] = {i: {} for i in ids}
    for sweep_id, status, count in rows:
        if status is not None:
            found[sweep_id][status] = count
    return found


def running(session: Session, ids: Sequence[str]) -> dict[str, float]:
    """By sweep, the sum of the fractions that its running experiments have done."""
    rows = session.execute(
        select(SweepExperiment.sweep_id, Experiment.progress)
        .outerjoin(Experiment, Experiment.id == SweepExperiment.experiment_id)
        .where(SweepExperiment.sweep_id.in_(ids), func.coalesce(Experiment.status, "") == RUNNING)
    )
    found = dict.fromkeys(ids, 0.0)
    for sweep_id, progress in rows:
        found[sweep_id] += progress.get("fraction", 0.0)
    return found


def cell_counts(session: Session, ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """By sweep, how many cells it has, and how many of them have an experiment."""
    rows = session.execute(
        select(SweepCell.sweep_id, func.count(), func.count(SweepCell.experiment_id))
        .where(SweepCell.sweep_id.in_(ids))
        .group_by(SweepCell.sweep_id)
    )
    return {sweep_id: (cells, filled) for sweep_id, cells, filled in rows}


def cells(
    session: Session, sweep_id: str, status: str | None, after: int, limit: int
) -> Sequence[Row[SweepCell, Experiment]]:
    """Cells behind the number ``after`` with their experiments, which may be None; ``status`` may be "missing"."""
    query = (
        select(SweepCell, Experiment)
        .outerjoin(Experiment, Experiment.id == SweepCell.experiment_id)
        .where(SweepCell.sweep_id == sweep_id, SweepCell.number > after)
    )
    if status == "missing":
        query = query.where(SweepCell.experiment_id.is_(None))
    elif status is not None:
        query = query.where(func.coalesce(Experiment.status, "") == status)
    return session.execute(query.order_by(SweepCell.number).limit(limit)).all()


def locked(session: Session, sweep_id: str, statuses: Sequence[str], *, made: bool) -> Sequence[Experiment]:
    """The sweep's experiments in these states, locked, in an order in which two transactions never block each
    other. ``made``: only those that it submitted itself."""
    own = select(SweepExperiment.experiment_id).where(SweepExperiment.sweep_id == sweep_id)
    # A subquery with a limit is not merged into the rest, so SQLite asks it first.
    ids = (own.where(SweepExperiment.made) if made else own).limit(NEVER_SO_MANY).subquery()
    query = select(Experiment).join(ids, Experiment.id == ids.c.experiment_id).where(_state(statuses))
    query = query.order_by(Experiment.id).with_for_update(of=Experiment)
    return session.scalars(query.execution_options(populate_existing=True)).all()


def _state(statuses: Sequence[str]) -> ColumnElement[bool]:
    """In one of the states; a success in which an arm failed counts as failed too."""
    chosen = Experiment.status.in_(statuses)
    if FAILED not in statuses:
        return chosen
    broken = exists().where(ArmNote.experiment_id == Experiment.id, ArmNote.kind == "error")
    return or_(chosen, and_(Experiment.status == SUCCEEDED, broken))


def used_elsewhere(session: Session, sweep_id: str) -> set[str]:
    """Experiments that this sweep made and that another sweep or study uses too."""
    other = aliased(SweepExperiment)
    shared = exists().where(
        other.experiment_id == SweepExperiment.experiment_id, other.sweep_id != SweepExperiment.sweep_id
    )
    query = select(SweepExperiment.experiment_id).where(
        SweepExperiment.sweep_id == sweep_id, SweepExperiment.made, shared
    )
    return set(session.scalars(query))
