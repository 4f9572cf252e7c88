"""Experiments side by side: the differences between their specs and between their numbers."""

from collections.abc import Sequence
from typing import Any

from app.core.context import Context
from app.core.errors import InvalidError
from app.results.compare import repository
from app.results.compare.repository import Numbers
from app.results.compare.schemas import ArmComparison, Compared, Comparison, Curve, MetricRow, SpecField
from app.results.numbers.schemas import Aggregate
from app.specs.experiment import ATTACK, UNHASHED_FIELDS
from app.specs.flatten import flatten
from app.specs.metrics import METRICS
from app.specs.stored import StoredSpec, completed
from app.tables.experiments import require_experiment

FEWEST, MOST = 2, 10


def compare(context: Context, ids: str, names: Sequence[str], max_points: int) -> Comparison:
    """The experiments ``ids``, separated by commas and compared with the first, and their curves ``names``.

    Raises InvalidError for a malformed list, NotFoundError for an unknown experiment.
    """
    chosen = _parse_ids(ids)
    with context.database.reading() as session:
        # One lookup each: SQLite answers a single query for all ids by scanning the owner's experiments.
        experiments = [require_experiment(session, experiment_id) for experiment_id in chosen]
        numbers = repository.numbers(session, chosen)
        curves = repository.curves(session, chosen, names, max_points)
    specs = [StoredSpec(completed(experiment.spec)) for experiment in experiments]
    arms = list(dict.fromkeys(arm for spec in specs for arm in spec.arms))
    return Comparison(
        experiments=[Compared.model_validate(experiment, from_attributes=True) for experiment in experiments],
        spec=_compare_specs(specs),
        arms=[row for arm in arms if (row := _compare_arm(arm, chosen, numbers)).metrics],
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


def _parse_ids(text: str) -> list[str]:
    ids = [part.strip() for part in text.split(",") if part.strip()]
    if not FEWEST <= len(ids) <= MOST or len(set(ids)) != len(ids):
        raise InvalidError.of("ids", text, f"allowed: {FEWEST} to {MOST} different ids, separated by commas")
    return ids


def _compare_specs(specs: list[StoredSpec]) -> list[SpecField]:
    documents = [flatten(_document(spec)) for spec in specs]
    rows = []
    for name in dict.fromkeys(name for document in documents for name in document):
        values = [document.get(name) for document in documents]
        rows.append(SpecField(field=name, values=values, same=all(value == values[0] for value in values)))
    return sorted(rows, key=lambda row: row.same)


def _document(spec: StoredSpec) -> dict[str, Any]:
    """The spec without its labels; defenses by arm, so that a defense is compared with the one of the same arm."""
    fields = {name: value for name, value in spec.document.items() if name not in UNHASHED_FIELDS}
    return {**fields, "defenses": spec.defenses}


def _compare_arm(arm: str, ids: list[str], numbers: Numbers) -> ArmComparison:
    by_experiment = [numbers[i].get(arm, {}) for i in ids]
    recorded = {metric for metrics in by_experiment for metric in metrics}
    rows = []
    for metric in (*(m for m in METRICS if m in recorded), *sorted(recorded - set(METRICS))):
        first, *others = columns = [metrics.get(metric, {}) for metrics in by_experiment]
        differences = [
            Aggregate.of(values[seed] - first[seed] for seed in values if seed in first) for values in others
        ]
        rows.append(
            MetricRow(
                metric=metric,
                values=[Aggregate.of(values.values()) for values in columns],
                differences=[None, *differences],
            )
        )
    return ArmComparison(arm=arm, metrics=rows)
