"""Queries about experiments. Each function is given an open session; none commits.

On a request's session they see the owner's experiments alone (`app.tables.owners`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, Row, String, bindparam, exists, func, select, tuple_
from sqlalchemy.orm import Session

from app.core.database import OWNER, casefolded
from app.tables.artifacts import Artifact
from app.tables.experiments import Attempt, Event, Experiment, Idempotency, Label, LogLine, Stage
from app.tables.results import ResultValue
from app.tables.sweeps import Sweep, SweepExperiment

Order = Literal["created_at", "-created_at"]
SUMMARY_METRICS = ("clean_accuracy", "attack_success_rate")


# Hundreds of clients poll. A statement that is built once, filters by owner itself and does without the ORM takes a
# fifth of the processor time.
_VERSION_KEY = select(
    select(func.max(Event.id)).where(Event.experiment_id == Experiment.id).scalar_subquery(),
    select(func.min(SweepExperiment.sweep_id))
    .where(SweepExperiment.experiment_id == Experiment.id, SweepExperiment.made)
    .scalar_subquery()
    .label("sweep_id"),
    Experiment.status,
    Experiment.attempt,
    Experiment.attempts_left,
    Experiment.queued_at,
    Experiment.finished_at,
    Experiment.cancel_requested_at,
).where(
    Experiment.id == bindparam("id"),
    Experiment.owner_id == func.coalesce(bindparam("owner", type_=String), Experiment.owner_id),
)


class TagFilter(NamedTuple):
    """Experiments with a tag, of any value if it is None; or, if ``absent``, those without it."""

    key: str
    value: str | None
    absent: bool


@dataclass(frozen=True)
class Filters:
    """Which experiments a list shows; None matches all. ``dataset`` is a name, or one as lists show it, such as
    ``imported/KEY``. All of ``tags`` must hold; ``sweep`` is the id
    of a sweep or study that uses the experiments; ``text`` is part of the name, in any case."""

    status: str | None = None
    dataset: str | None = None
    model: str | None = None
    attack: str | None = None
    defense: str | None = None
    tags: tuple[TagFilter, ...] = ()
    sweep: str | None = None
    text: str | None = None


def version_key(session: Session, experiment_id: str) -> Row[*tuple[Any, ...]] | None:
    """Changes whenever a field of `ExperimentOut` changes; None if the session's owner has no such experiment.

    Fields that are not part of the key change only in a transaction that writes an event. Its ``sweep_id`` is None if
    the experiment was not submitted by a sweep or study.
    """
    parameters = {"id": experiment_id, "owner": session.info.get(OWNER)}
    return session.connection().execute(_VERSION_KEY, parameters).one_or_none()


def page(
    session: Session, filters: Filters, order: Order, after: tuple[datetime, str] | None, limit: int
) -> Sequence[Experiment]:
    """At most ``limit`` experiments after the position ``after`` in this order."""
    newest_first = order == "-created_at"
    columns = (Experiment.created_at, Experiment.id)
    in_order = [c.desc() if newest_first else c.asc() for c in columns]
    # The ids first: rows are long, and an index alone decides about most of those that are skipped.
    ids = select(Experiment.id, Experiment.created_at).where(*_conditions(filters))
    if after is not None:
        position = tuple_(*columns)
        ids = ids.where(position < after if newest_first else position > after)
    chosen = ids.order_by(*in_order).limit(limit).subquery()
    same_order = [c.desc() if newest_first else c.asc() for c in (chosen.c.created_at, chosen.c.id)]
    query = select(Experiment).join(chosen, Experiment.id == chosen.c.id).order_by(*same_order)
    return session.scalars(query).all()


def _conditions(filters: Filters) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    for name in ("status", "model", "attack"):
        value = getattr(filters, name)
        if value is not None:
            conditions.append(getattr(Experiment, name) == value)
    if filters.dataset is not None:
        name, _, key = filters.dataset.partition("/")
        conditions.append(Experiment.dataset == name)
        if key:
            field = "key" if name == "imported" else "dataset_id"
            conditions.append(Experiment.spec["dataset"][field].as_string() == key)
    for key, value, absent in filters.tags:
        present = _has_label("tag", key, value)
        conditions.append(~present if absent else present)
    if filters.defense is not None:
        conditions.append(_has_label("defense", filters.defense, ""))
    if filters.sweep is not None:
        used = SweepExperiment.experiment_id == Experiment.id, SweepExperiment.sweep_id == filters.sweep
        conditions.append(exists().where(*used))
    if filters.text is not None:
        conditions.append(casefolded(Experiment.name).contains(filters.text.casefold(), autoescape=True))
    return conditions


def _has_label(kind: str, key: str, value: str | None) -> ColumnElement[bool]:
    label = exists().where(Label.experiment_id == Experiment.id, Label.kind == kind, Label.key == key)
    return label if value is None else label.where(Label.value == value)


def attempts(session: Session, ids: Sequence[str]) -> dict[str, list[Attempt]]:
    """The attempts of each experiment, the oldest first."""
    rows = session.scalars(select(Attempt).where(Attempt.experiment_id.in_(ids)).order_by(Attempt.number))
    by_experiment: dict[str, list[Attempt]] = {i: [] for i in ids}
    for row in rows:
        by_experiment[row.experiment_id].append(row)
    return by_experiment


def summaries(session: Session, ids: Sequence[str]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Means over seeds: experiment -> arm -> metric -> value."""
    # coalesce() stops SQLite from using its index of metrics, which would read the numbers of all experiments.
    shown = func.coalesce(ResultValue.metric, "").in_(SUMMARY_METRICS)
    rows = session.connection().execute(
        select(ResultValue.experiment_id, ResultValue.arm, ResultValue.metric, func.avg(ResultValue.value))
        .where(ResultValue.experiment_id.in_(ids), shown)
        .group_by(ResultValue.experiment_id, ResultValue.arm, ResultValue.metric)
    )
    means: dict[str, dict[str, dict[str, float | None]]] = {i: {} for i in ids}
    for experiment_id, arm, metric, value in rows:
        means[experiment_id].setdefault(arm, {})[metric] = value
    return means


def sweeps(session: Session, ids: Sequence[str]) -> dict[str, Row[str, str, str, dict[str, Any]]]:
    """By experiment, the sweep or study that submitted it: (..., id, kind, coordinates)."""
    rows = session.execute(
        select(SweepExperiment.experiment_id, Sweep.id, Sweep.kind, SweepExperiment.coordinates)
        .select_from(SweepExperiment)
        .outerjoin(Sweep, Sweep.id == SweepExperiment.sweep_id)  # else SQLite starts with the owner's sweeps
        .where(SweepExperiment.experiment_id.in_(ids), SweepExperiment.made)
    )
    return {row.experiment_id: row for row in rows if row.id is not None}


def events(session: Session, experiment_id: str, after: int, limit: int) -> Sequence[Event]:
    return session.scalars(
        select(Event)
        .where(Event.experiment_id == experiment_id, Event.id > after)
        .order_by(Event.id)
        .limit(limit)
    ).all()


def status(session: Session, experiment_id: str) -> str | None:
    """The status alone, or None if there is no such experiment."""
    return session.scalar(select(Experiment.status).where(Experiment.id == experiment_id))


def count_log(session: Session, experiment_id: str) -> int:
    return session.scalar(select(func.count()).where(LogLine.experiment_id == experiment_id)) or 0


def log(session: Session, experiment_id: str, offset: int, limit: int) -> Sequence[LogLine]:
    return session.scalars(
        select(LogLine)
        .where(LogLine.experiment_id == experiment_id)
        .order_by(LogLine.id)
        .offset(offset)
        .limit(limit)
    ).all()


def first_answer(session: Session, key: str) -> Idempotency | None:
    """The first answer to an Idempotency-Key."""
    return session.scalars(select(Idempotency).where(Idempotency.key == key)).one_or_none()


def cached(session: Session, keys: Sequence[str]) -> set[str]:
    """The keys among ``keys`` whose stages are ready."""
    query = select(Stage.key).where(Stage.key.in_(keys), Stage.ready_at.is_not(None))
    return set(session.scalars(query))


def object_keys(session: Session, ids: Sequence[str]) -> set[str]:
    """Keys of the objects of the experiments' artifacts."""
    return set(session.scalars(select(Artifact.object_key).where(Artifact.experiment_id.in_(ids))))
