"""What a page of rows shows, in one query for each source of its fields."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.results.search.fields import Field
from app.tables.experiments import Experiment, Label
from app.tables.search import ResultMean, ResultRow, SpecNumber, SpecText

Shown = dict[str, Any]


def rows(session: Session, ids: Sequence[int], fields: Sequence[Field]) -> list[Shown]:
    """The rows with these ids, in this order, with a value or None for each of the fields."""
    found = {row.id: row for row in session.scalars(select(ResultRow).where(ResultRow.id.in_(ids)))}
    ordered = [found[i] for i in ids if i in found]
    shown: dict[int, Shown] = {row.id: {} for row in ordered}
    for row in ordered:
        for field in fields:
            own = field.source in ("row", "time")
            shown[row.id][field.name] = getattr(row, field.key) if own else None
    by_source: dict[str, list[Field]] = {}
    for field in fields:
        by_source.setdefault("metric" if field.source == "interval" else field.source, []).append(field)
    for source, show in (
        ("spec", _show_spec),
        ("metric", _show_metrics),
        ("tag", _show_tags),
        ("experiment", _show_experiments),
    ):
        if source in by_source:
            show(session, ordered, by_source[source], shown)
    return list(shown.values())


def _show_spec(
    session: Session, rows: Sequence[ResultRow], fields: list[Field], shown: dict[int, Shown]
) -> None:
    parts = {getattr(row, f"{field.part}_id") for row in rows for field in fields} - {None}
    paths = {field.name for field in fields}
    values: dict[int, dict[str, float | str]] = {}
    for facts in (SpecNumber, SpecText):
        query: Any = select(facts.part_id, facts.path, facts.value)
        for part, path, value in session.execute(
            query.where(facts.part_id.in_(parts), facts.path.in_(paths))
        ):
            values.setdefault(part, {})[path] = value
    for row in rows:
        for field in fields:
            part = getattr(row, f"{field.part}_id")
            shown[row.id][field.name] = values.get(part, {}).get(field.name)


def _show_metrics(
    session: Session, rows: Sequence[ResultRow], fields: list[Field], shown: dict[int, Shown]
) -> None:
    metrics = {field.key for field in fields}
    query = select(ResultMean).where(
        ResultMean.row_id.in_([row.id for row in rows]), ResultMean.metric.in_(metrics)
    )
    found = {(mean.row_id, mean.metric): mean for mean in session.scalars(query)}
    for row in rows:
        for field in fields:
            mean = found.get((row.id, field.key))
            end = field.name.rpartition(".")[2] if field.source == "interval" else "mean"
            shown[row.id][field.name] = getattr(mean, end) if mean is not None else None


def _show_tags(
    session: Session, rows: Sequence[ResultRow], fields: list[Field], shown: dict[int, Shown]
) -> None:
    ids, keys = [row.experiment_id for row in rows], [field.key for field in fields]
    query = select(Label.experiment_id, Label.key, Label.value)
    wanted = (Label.experiment_id.in_(ids), Label.kind == "tag", Label.key.in_(keys))
    values = {(experiment, key): value for experiment, key, value in session.execute(query.where(*wanted))}
    for row in rows:
        for field in fields:
            shown[row.id][field.name] = values.get((row.experiment_id, field.key))


def _show_experiments(
    session: Session, rows: Sequence[ResultRow], fields: list[Field], shown: dict[int, Shown]
) -> None:
    names = [field.key for field in fields]
    columns = [getattr(Experiment, name) for name in names]
    query = select(Experiment.id, *columns).where(Experiment.id.in_([row.experiment_id for row in rows]))
    values = {found[0]: found[1:] for found in session.execute(query)}
    for row in rows:
        for field, value in zip(fields, values.get(row.experiment_id, [None] * len(names)), strict=True):
            shown[row.id][field.name] = value
