"""Which cells a study has, which of them are there already, and which experiments fill the rest.

A cell is one arm and seed of one attack. The experiments that fill cells hold one attack and one seed, with every
defense that is missing there: the poisoned set and the victim are computed once for all of them, two workers can
work on two seeds of one attack, and what fails or is added later touches nothing else. Cells are found again by the
content-address of their numbers, in whatever experiment of the owner's they were computed.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pydantic import ValidationError
from sqlalchemy.orm import Session

from app.core.context import Context
from app.core.errors import InvalidError, summary
from app.core.validation import FieldError
from app.experiments.planning import PlannedExperiment, plan_experiment
from app.specs.experiment import CLEAN
from app.specs.study import StudySpec
from app.sweeps.expansion import refuse
from app.sweeps.studies import repository


class Place(NamedTuple):
    """Where a cell lies: the attack's label, the arm, the seed."""

    row: str
    arm: str
    seed: int


class Layout(NamedTuple):
    """Every cell with the content address of its numbers, and by row the experiment that all its cells would make."""

    keys: dict[Place, str]
    rows: dict[str, PlannedExperiment]


class Filling(NamedTuple):
    """How cells that have no experiment get one."""

    found: dict[Place, tuple[str, str]]
    """Experiment and arm that have the numbers already."""
    experiments: list[tuple[PlannedExperiment, list[Place]]]
    """Experiments to submit, each with the cells that it fills."""


def lay_out(context: Context, spec: StudySpec) -> Layout:
    """Every cell, row by row.

    Raises InvalidError if the study is too large, or names each attack, defense and field that cannot run.
    """
    most = context.settings.max_sweep_cells
    if spec.size > most:
        refuse(
            "attacks",
            f"{spec.size} cells",
            f"allowed: at most {most} (BDLAB_MAX_SWEEP_CELLS) of attacks x arms x seeds",
        )
    layout = Layout({}, {})
    faults: dict[tuple[str, str], FieldError] = {}
    for number, attack in enumerate(spec.attacks):
        try:
            whole = spec.experiment(
                attack, seeds=spec.seeds, defenses=spec.defenses, reference=spec.reference
            )
            planned = plan_experiment(context, whole)
        except ValidationError as error:  # an arm is called like one that every experiment has
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
            refuse("defenses", ", ".join(d.arm_name for d in spec.defenses), message)
        except InvalidError as error:
            for fault in error.errors:
                inside = fault["field"]
                field = f"attacks[{number}].{inside}" if inside.startswith("attack.") else inside
                faults.setdefault((field, fault["message"]), FieldError({**fault, "field": field}))
        else:
            layout.rows[attack.row] = planned
            for arm in whole.arms:
                for seed in spec.seeds:
                    layout.keys[Place(attack.row, arm, seed)] = planned.arm_keys[arm, seed]
    if faults:
        raise InvalidError(summary(list(faults.values())), list(faults.values()))
    return layout


def fill(session: Session, spec: StudySpec, layout: Layout, empty: Iterable[Place]) -> Filling:
    """How to fill the ``empty`` ones among all cells: from what is there, and by as few experiments as suffice."""
    wanted, keys = list(empty), layout.keys
    done = repository.done(session, sorted({keys[place] for place in wanted}))
    found = {place: done[keys[place]] for place in wanted if keys[place] in done}
    missing: dict[tuple[str, int], list[Place]] = {}
    for place in wanted:
        if place not in found:
            missing.setdefault((place.row, place.seed), []).append(place)
    return Filling(found, [(_experiment(spec, layout, places), places) for places in missing.values()])


def _experiment(spec: StudySpec, layout: Layout, places: Sequence[Place]) -> PlannedExperiment:
    """The experiment that fills cells of one row and seed."""
    row, _, seed = places[0]
    arms = {place.arm for place in places}
    experiment = spec.experiment(
        next(attack for attack in spec.attacks if attack.row == row),
        seeds=[seed],
        defenses=[d for d in spec.defenses if d.arm_name in arms],
        reference=CLEAN in arms and spec.reference,
    )
    return layout.rows[row].restrict(experiment)
