"""The values that a page of results shows, in one query for each source of its fields.

The rows are the owner's. What belongs to them is read without the ORM, which would filter it by owner again.
"""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.results.search.fields import Field
from app.tables.experiments import Experiment, Label
from app.tables.search import ResultMean, ResultRow, SpecNumber, SpecText

Shown = dict[str, Any]
Reader = Callable[[ResultRow, Field], Any]
"""Gives the value of a field in a row."""


def rows(session: Session, ids: Sequence[int], fields: Sequence[Field]) -> list[Shown]:
    """For each of the row ids, in this order, the value of each field, or None."""
    by_id = {row.id: row for row in session.scalars(select(ResultRow).where(ResultRow.id.in_(ids)))}
    found = [by_id[i] for i in ids if i in by_id]
    by_source: dict[str, list[Field]] = {}
    for field in fields:
        by_source.setdefault("metric" if field.source == "interval" else field.source, []).append(field)
    shown: dict[int, Shown] = {row.id: {} for row in found}
    for source, of_source in by_source.items():
        value_of = _READERS[source](session, found, of_source)
        for row in found:
            shown[row.id] |= {field.name: value_of(row, field) for field in of_source}
    return list(shown.values())


def _read_columns(_session: Session, _rows: Sequence[ResultRow], _fields: Sequence[Field]) -> Reader:
    return lambda row, field: getattr(row, field.key)


def _read_spec(session: Session, rows: Sequence[ResultRow], fields: Sequence[Field]) -> Reader:
    parts = {getattr(row, f"{field.part}_id") for row in rows for field in fields} - {None}
    paths = {field.name for field in fields}
    values: dict[tuple[int, str], float | str] = {}
    for table in (SpecNumber, SpecText):
        query: Any = select(table.part_id, table.path, table.value)
        query = query.where(table.part_id.in_(parts), table.path.in_(paths))
        values |= {(part, path): value for part, path, value in session.connection().execute(query)}
    return lambda row, field: values.get((getattr(row, f"{field.part}_id"), field.name))


def _read_metrics(session: Session, rows: Sequence[ResultRow], fields: Sequence[Field]) -> Reader:
    ids, metrics = [row.id for row in rows], {field.key for field in fields}
    query = select(ResultMean.__table__).where(ResultMean.row_id.in_(ids), ResultMean.metric.in_(metrics))
    means = {(mean.row_id, mean.metric): mean for mean in session.connection().execute(query)}

    def value_of(row: ResultRow, field: Field) -> Any:
        column = field.name.rpartition(".")[2] if field.source == "interval" else "mean"
        return getattr(means.get((row.id, field.key)), column, None)

    return value_of


def _read_tags(session: Session, rows: Sequence[ResultRow], fields: Sequence[Field]) -> Reader:
    ids, keys = [row.experiment_id for row in rows], [field.key for field in fields]
    query = select(Label.experiment_id, Label.key, Label.value)
    query = query.where(Label.experiment_id.in_(ids), Label.kind == "tag", Label.key.in_(keys))
    values = {(experiment_id, key): value for experiment_id, key, value in session.execute(query)}
    return lambda row, field: values.get((row.experiment_id, field.key))


def _read_experiments(session: Session, rows: Sequence[ResultRow], fields: Sequence[Field]) -> Reader:
    columns = [getattr(Experiment, field.key) for field in fields]
    query = select(Experiment.id, *columns).where(Experiment.id.in_([row.experiment_id for row in rows]))
    experiments = {experiment.id: experiment for experiment in session.execute(query)}
    return lambda row, field: getattr(experiments.get(row.experiment_id), field.key, None)


_READERS = {
    "row": _read_columns,
    "time": _read_columns,
    "spec": _read_spec,
    "metric": _read_metrics,
    "tag": _read_tags,
    "experiment": _read_experiments,
}
