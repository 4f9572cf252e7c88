"""The attack x defense matrix of a study, from the numbers of its experiments."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy.orm import Session

from app.results.numbers.schemas import Aggregate
from app.specs.experiment import CLEAN, UNDEFENDED
from app.specs.metrics import EFFECTIVENESS, defense_effectiveness, summarize
from app.specs.study import StudySpec
from app.sweeps.studies import repository
from app.sweeps.studies.planning import Place
from app.sweeps.studies.repository import CLEAN_ACCURACY, MEASURED
from app.sweeps.studies.schemas import Average, State, States, Table, TableCell, TableRow
from app.tables.sweeps import Sweep

METRICS = (*MEASURED, EFFECTIVENESS)

Values = Mapping[str, float | None]


class SeedCell(NamedTuple):
    """One arm and seed of one attack."""

    experiment_id: str | None
    state: State
    reused: bool
    values: Values
    warnings: int


def seed_cells(session: Session, study_id: str) -> dict[Place, SeedCell]:
    """Every cell of the study as it stands, in four queries."""
    experiments = repository.experiments(session, study_id)
    values: dict[tuple[str | None, str | None, int], dict[str, float | None]] = defaultdict(dict)
    for experiment_id, arm, seed, metric, value in repository.values(session, study_id):
        values[experiment_id, arm, seed][metric] = value
    warnings = Counter[tuple[str | None, str | None, int]](
        (note.experiment_id, note.arm, note.seed)
        for note in repository.notes(session, study_id)
        if note.kind == "warning"
    )
    found: dict[Place, SeedCell] = {}
    for cell in repository.cells(session, study_id):
        where = cell.coordinates
        status, made = experiments.get(cell.experiment_id or "", ("missing", True))
        key = (cell.experiment_id, cell.arm, where["seed"])
        state = _state(status, values[key])
        found[Place(where["attack"], where["arm"], where["seed"])] = SeedCell(
            cell.experiment_id, state, not made, values[key], warnings[key]
        )
    return found


def _state(status: str, values: Values) -> State:
    """A cell has succeeded once its numbers are there, whatever becomes of the rest of its experiment."""
    if values.get(CLEAN_ACCURACY) is not None:
        return "succeeded"
    match status:
        case "queued" | "running" | "canceled" | "missing":
            return status
        case _:
            return "failed"


def count(cells: Iterable[SeedCell]) -> States:
    """How many of the cells are in each state."""
    return States(**Counter[str](cell.state for cell in cells))


def table(study: Sweep, spec: StudySpec, cells: Mapping[Place, SeedCell]) -> Table:
    """The matrix: mean and 95 % interval over the seeds that are done."""
    arms = spec.columns
    rows = [
        TableRow(attack=a.row, cells=[_cell(a.row, arm, spec.seeds, cells) for arm in arms])
        for a in spec.attacks
    ]
    attacked = [row for row, a in zip(rows, spec.attacks, strict=True) if a.attack.name != "none"]
    averages = [_average(arm, [row.cells[i] for row in attacked]) for i, arm in enumerate(arms)]
    return Table(
        study_id=study.id, name=study.name, seeds=list(spec.seeds), arms=arms, rows=rows, averages=averages
    )


def _cell(row: str, arm: str, seeds: Sequence[int], cells: Mapping[Place, SeedCell]) -> TableCell:
    mine = {seed: cells[Place(row, arm, seed)] for seed in seeds if Place(row, arm, seed) in cells}
    numbers = [_numbers(row, arm, seed, cells) for seed in mine]
    return TableCell(
        arm=arm,
        states=count(mine.values()),
        warnings=sum(cell.warnings for cell in mine.values()),
        experiments=sorted({cell.experiment_id for cell in mine.values() if cell.experiment_id}),
        **{name: _aggregate(of_seed.get(name) for of_seed in numbers) for name in METRICS},
    )


def _numbers(row: str, arm: str, seed: int, cells: Mapping[Place, SeedCell]) -> Values:
    """The metrics of one cell, with the rating of a defense against the undefended arm."""
    values = cells[Place(row, arm, seed)].values
    undefended = cells.get(Place(row, UNDEFENDED, seed))
    if arm in (CLEAN, UNDEFENDED) or undefended is None:
        return values
    return {**values, EFFECTIVENESS: defense_effectiveness(undefended.values, values)}


def _average(arm: str, column: Sequence[TableCell]) -> Average:
    def mean(name: str) -> Aggregate | None:
        found: list[Aggregate] = [a for cell in column if (a := getattr(cell, name)) is not None]
        return _aggregate(a.mean for a in found) if found and len(found) == len(column) else None

    return Average(arm=arm, **{name: mean(name) for name in METRICS})


def _aggregate(values: Iterable[float | None]) -> Aggregate | None:
    found = summarize(values)
    return Aggregate.model_validate(found) if found is not None else None
