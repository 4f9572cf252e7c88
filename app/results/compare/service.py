"""Experiments side by side: what differs in their specs, and by how much their numbers do."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from app.core.context import Context
from app.core.errors import InvalidError, NotFoundError, summary
from app.core.validation import FieldError, shown
from app.results.compare import repository
from app.results.compare.repository import Numbers
from app.results.compare.schemas import ArmComparison, Compared, Comparison, Curve, MetricRow, SpecField
from app.results.numbers.schemas import Aggregate
from app.specs.experiment import ATTACK, UNHASHED_FIELDS
from app.specs.metrics import METRICS, summarize
from app.specs.stored import StoredSpec, completed
from app.tables.experiments import Experiment

FEWEST, MOST = 2, 10


def compare(context: Context, ids: str, names: Sequence[str], points: int) -> Comparison:
    """``ids`` by commas, the first of which the others are compared with; curves called ``names``.

    Raises InvalidError for a list that is none, NotFoundError for an experiment that is not there.
    """
    wanted = _wanted(ids)
    with context.database.reading() as session:
        found = repository.experiments(session, wanted)
        missing = [i for i in wanted if i not in found]
        if missing:
            raise NotFoundError(f"there is no experiment {shown(missing[0])}")
        numbers = repository.numbers(session, wanted)
        curves = repository.curves(session, wanted, names, points)
    experiments = [found[i] for i in wanted]
    specs = [StoredSpec(completed(experiment.spec)) for experiment in experiments]
    arms = list(dict.fromkeys(arm for spec in specs for arm in spec.arms))
    return Comparison(
        experiments=[_compared(experiment) for experiment in experiments],
        spec=_spec(specs),
        arms=[row for arm in arms if (row := _arm(arm, wanted, numbers)).metrics],
        curves=[
            Curve(
                experiment_id=experiment_id,
                arm=arm,
                name=name,
                steps=[step for step, _ in series],
                values=[value for _, value in series],
            )
            for (experiment_id, arm, name), series in curves.items()
            if arm != ATTACK
        ],
    )


def _wanted(text: str) -> list[str]:
    ids = [part.strip() for part in text.split(",") if part.strip()]
    if not FEWEST <= len(ids) <= MOST or len(set(ids)) != len(ids):
        message = f"allowed: {FEWEST} to {MOST} different ids, separated by commas"
        fault = FieldError(field="ids", value=shown(text), message=message)
        raise InvalidError(summary([fault]), [fault])
    return ids


def _compared(experiment: Experiment) -> Compared:
    return Compared.model_validate(experiment, from_attributes=True)


def _spec(specs: list[StoredSpec]) -> list[SpecField]:
    flat = [dict(_flat("", _document(spec))) for spec in specs]
    names = dict.fromkeys(name for fields in flat for name in fields)
    rows = []
    for name in names:
        values = [fields.get(name) for fields in flat]
        rows.append(SpecField(field=name, values=values, same=all(value == values[0] for value in values)))
    return sorted(rows, key=lambda row: row.same)


def _document(spec: StoredSpec) -> dict[str, Any]:
    """The spec without what only names it; defenses by their arms, so that the same one is compared."""
    fields = {name: value for name, value in spec.document.items() if name not in UNHASHED_FIELDS}
    return {**fields, "defenses": spec.defenses}


def _flat(prefix: str, fields: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _flat(f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}", value


def _arm(arm: str, ids: list[str], numbers: Numbers) -> ArmComparison:
    by_experiment = [numbers[i].get(arm, {}) for i in ids]
    known = {metric for metrics in by_experiment for metric in metrics}
    order = [*(m for m in METRICS if m in known), *sorted(known - set(METRICS))]
    rows = []
    for metric in order:
        seeds = [metrics.get(metric, {}) for metrics in by_experiment]
        first = seeds[0]
        differences = [_aggregate(own[s] - first[s] for s in own if s in first) for own in seeds[1:]]
        rows.append(
            MetricRow(
                metric=metric,
                values=[_aggregate(own.values()) for own in seeds],
                differences=[None, *differences],
            )
        )
    return ArmComparison(arm=arm, metrics=rows)


def _aggregate(values: Iterable[float]) -> Aggregate | None:
    summary_of = summarize(values)
    return Aggregate.model_validate(summary_of) if summary_of is not None else None
