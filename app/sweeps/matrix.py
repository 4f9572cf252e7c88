"""The attack x defense matrix of a study, computed from the results of its experiments."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy.orm import Session

from app.results.numbers.schemas import Aggregate
from app.specs.experiment import CLEAN, UNDEFENDED
from app.specs.metrics import EFFECTIVENESS, defense_effectiveness
from app.specs.stored import StoredStudy
from app.sweeps import repository
from app.sweeps.planning import Coordinates
from app.sweeps.repository import ATTACK_SUCCESS, CLEAN_ACCURACY, MEASURED
from app.sweeps.schemas import Average, CellStatus, States, Table, TableCell, TableRow, Worst
from app.tables.sweeps import Sweep

METRICS = (*MEASURED, EFFECTIVENESS)
Values = Mapping[str, float | None]


class SeedCell(NamedTuple):
    """One arm and seed of one attack, with its metrics by name."""

    experiment_id: str | None
    status: CellStatus
    reused: bool
    values: Values
    warnings: int


def load_cells(session: Session, study_id: str) -> dict[Coordinates, SeedCell]:
    """Every cell of the study, in three queries."""
    values: dict[tuple[str | None, str | None, int], dict[str, float | None]] = defaultdict(dict)
    for experiment_id, arm, seed, metric, value in repository.study_values(session, study_id):
        values[experiment_id, arm, seed][metric] = value
    warnings = repository.count_warnings(session, study_id)
    cells: dict[Coordinates, SeedCell] = {}
    for cell, status, submitted in repository.study_cells(session, study_id):
        coordinates = Coordinates(**cell.coordinates)
        place = (cell.experiment_id, cell.arm, coordinates.seed)
        cells[coordinates] = SeedCell(
            experiment_id=cell.experiment_id,
            status=_status(status, values[place]),
            reused=submitted is False,
            values=values[place],
            warnings=warnings.get(place, 0),
        )
    return cells


def _status(experiment_status: str | None, values: Values) -> CellStatus:
    """A cell has succeeded as soon as it has results, whatever its experiment does next."""
    if values.get(CLEAN_ACCURACY) is not None:
        return "succeeded"
    match experiment_status:
        case None:
            return "missing"
        case "queued" | "running" | "canceled":
            return experiment_status
        case _:
            return "failed"


def count_states(cells: Iterable[SeedCell]) -> States:
    """The number of cells in each state."""
    return States(**Counter[str](cell.status for cell in cells))


def build_table(study: Sweep, cells: Mapping[Coordinates, SeedCell]) -> Table:
    """Attacks x arms, with means and 95 % intervals over the finished seeds."""
    spec = StoredStudy(study.spec)
    arms, seeds = spec.arms, spec.seeds
    rows = [
        TableRow(attack=name, cells=[_aggregate_seeds(name, arm, seeds, cells) for arm in arms])
        for name in spec.rows
    ]
    attacked = [row for row in rows if spec.rows[row.attack] != "none"]
    return Table(
        study_id=study.id,
        name=study.name,
        seeds=list(seeds),
        arms=arms,
        rows=rows,
        averages=[_average(arm, [row.cells[i] for row in attacked]) for i, arm in enumerate(arms)],
        worst=[find_worst(arm, {row.attack: row.cells[i] for row in attacked}) for i, arm in enumerate(arms)],
    )


def _aggregate_seeds(
    attack: str, arm: str, seeds: Sequence[int], cells: Mapping[Coordinates, SeedCell]
) -> TableCell:
    places = [place for seed in seeds if (place := Coordinates(attack, arm, seed)) in cells]
    of_seeds = [cells[place] for place in places]
    numbers = [_rate(cells[place], place, cells) for place in places]
    return TableCell(
        arm=arm,
        states=count_states(of_seeds),
        warnings=sum(cell.warnings for cell in of_seeds),
        experiments=sorted({cell.experiment_id for cell in of_seeds if cell.experiment_id}),
        **{metric: Aggregate.of(values.get(metric) for values in numbers) for metric in METRICS},
    )


def _rate(cell: SeedCell, place: Coordinates, cells: Mapping[Coordinates, SeedCell]) -> Values:
    """The metrics of a cell; those of a defense with its effectiveness against the undefended arm."""
    undefended = cells.get(place._replace(arm=UNDEFENDED))
    if place.arm in (CLEAN, UNDEFENDED) or undefended is None:
        return cell.values
    return {**cell.values, EFFECTIVENESS: defense_effectiveness(undefended.values, cell.values)}


def _average(arm: str, column: Sequence[TableCell]) -> Average:
    def mean(metric: str) -> Aggregate | None:
        means = [value.mean for cell in column if (value := getattr(cell, metric)) is not None]
        return Aggregate.of(means) if len(means) == len(column) else None

    return Average(arm=arm, **{metric: mean(metric) for metric in METRICS})


def find_worst(arm: str, column: Mapping[str, TableCell]) -> Worst:
    """The worst numbers of an arm over its cells by attack; null where a cell has no value."""

    def extreme(metric: str, choose: Callable[..., TableCell]) -> Aggregate | None:
        complete = bool(column) and all(getattr(cell, metric) is not None for cell in column.values())
        return getattr(choose(column.values(), key=_mean_of(metric)), metric) if complete else None

    success = extreme(ATTACK_SUCCESS, max)
    return Worst(
        arm=arm,
        attack=None
        if success is None
        else max(column, key=lambda name: _mean_of(ATTACK_SUCCESS)(column[name])),
        clean_accuracy=extreme(CLEAN_ACCURACY, min),
        attack_success_rate=success,
        defense_effectiveness=extreme(EFFECTIVENESS, min),
    )


def _mean_of(metric: str) -> Callable[[TableCell], float]:
    return lambda cell: float(getattr(cell, metric).mean)
