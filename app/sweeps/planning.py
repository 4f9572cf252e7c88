"""The cells of a study, which of them have results already, and the experiments that compute the others.

A cell is one arm and seed of one attack. An experiment that fills cells has one attack and one seed, with every defense
that is missing there: its arms share the poisoned set and the victim, two workers can work on two seeds of one attack,
and a failure or a later addition concerns nothing else. Existing results are found by their content address (arm key),
in any experiment of the owner.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pydantic import ValidationError
from sqlalchemy.orm import Session

from app.core.context import Context
from app.core.errors import InvalidError
from app.core.validation import FieldError
from app.experiments.planning import PlannedExperiment, plan_experiment
from app.specs.experiment import CLEAN
from app.specs.study import StudySpec
from app.sweeps import repository
from app.sweeps.repository import ArmRef


class Coordinates(NamedTuple):
    """The position of a cell in a study. ``attack`` is the attack's label."""

    attack: str
    arm: str
    seed: int


class StudyPlan(NamedTuple):
    """A study whose cells can all run: by attack label, an experiment with all arms and seeds."""

    rows: dict[str, PlannedExperiment]

    @property
    def cells(self) -> list[Coordinates]:
        """Every cell, row by row."""
        return [Coordinates(attack, *place) for attack, row in self.rows.items() for place in row.arm_keys]

    def key(self, cell: Coordinates) -> str:
        """The content address of the cell's results."""
        return self.rows[cell.attack].arm_keys[cell.arm, cell.seed]


class Submission(NamedTuple):
    """An experiment to submit, and the cells that it fills, which have the same attack and seed."""

    experiment: PlannedExperiment
    cells: list[Coordinates]


def plan_study(context: Context, spec: StudySpec) -> StudyPlan:
    """Raises InvalidError if the study is too large, or with each attack, defense and field that cannot run."""
    limit = context.settings.max_sweep_cells
    if spec.size > limit:
        message = f"allowed: at most {limit} (BDLAB_MAX_SWEEP_CELLS) of attacks x arms x seeds"
        raise InvalidError.of("attacks", f"{spec.size} cells", message)
    rows: dict[str, PlannedExperiment] = {}
    errors: dict[tuple[str, str], FieldError] = {}
    for number, attack in enumerate(spec.attacks):
        try:
            row = spec.experiment(attack, seeds=spec.seeds, defenses=spec.defenses, reference=spec.reference)
            rows[attack.row] = plan_experiment(context, row)
        except ValidationError as error:  # a defense has the name of an arm that every experiment has
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
            names = ", ".join(defense.arm_name for defense in spec.defenses)
            raise InvalidError.of("defenses", names, message) from error
        except InvalidError as error:
            for fault in error.errors:
                field, message = fault["field"], fault["message"]
                if field.startswith("attack."):
                    field = f"attacks[{number}].{field}"
                errors.setdefault((field, message), FieldError({**fault, "field": field}))
    if errors:
        raise InvalidError.of_all(list(errors.values()))
    return StudyPlan(rows)


def fill(
    session: Session, plan: StudyPlan, cells: Iterable[Coordinates]
) -> tuple[dict[Coordinates, ArmRef], list[Submission]]:
    """The ``cells`` that have earlier results, with their sources, and as few experiments as fill the others."""
    keys = {cell: plan.key(cell) for cell in cells}
    arms = repository.find_arms(session, sorted(set(keys.values())))
    reused = {cell: arms[key] for cell, key in keys.items() if key in arms}
    groups: dict[tuple[str, int], list[Coordinates]] = defaultdict(list)
    for cell in keys:
        if cell not in reused:
            groups[cell.attack, cell.seed].append(cell)
    return reused, [
        Submission(_select(plan.rows[attack], group), group) for (attack, _), group in groups.items()
    ]


def _select(row: PlannedExperiment, cells: Sequence[Coordinates]) -> PlannedExperiment:
    """The part of a planned row that fills these cells of one seed."""
    arms, defenses = {cell.arm for cell in cells}, row.spec.defenses
    part = {
        "seeds": (cells[0].seed,),
        "defenses": tuple(defense for defense in defenses if defense.arm_name in arms),
        "reference": CLEAN in arms and row.spec.reference,
    }
    return row.restrict(row.spec.model_copy(update=part))
