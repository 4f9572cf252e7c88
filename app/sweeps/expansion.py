"""From a sweep to its experiments, all of them found sound before any is written."""

from collections.abc import Iterator
from typing import NamedTuple

from pydantic import ValidationError

from app.core.context import Context
from app.core.errors import InvalidError, summary
from app.core.validation import MOST_ERRORS, FieldError, field_errors, shown
from app.experiments.planning import PlannedExperiment, plan_experiment
from app.specs.experiment import ExperimentSpec
from app.specs.sweep import Cell, PathError, SweepSpec, build_cell, cell_coordinates, format_coordinates

MODELS_A_CELL = 50
"""So many trained models (arms x seeds) may a cell stand for, on average: a bound on what one request writes."""


class Sound(NamedTuple):
    """A cell whose spec is valid, fits its data set, and differs from that of every other cell."""

    cell: Cell
    planned: PlannedExperiment


def expand(context: Context, spec: SweepSpec) -> list[Sound]:
    """Every cell of the sweep. Raises InvalidError that names the faulty cells, their fields and values.

    The size is looked at first, so that a sweep that is too large costs nothing.
    """
    most = context.settings.max_sweep_cells
    if spec.size > most:
        field = "grid" if spec.grid else "overrides"
        refuse(field, f"{shown(spec.size)} cells", f"allowed: at most {most} (BDLAB_MAX_SWEEP_CELLS)")
    sound: list[Sound] = []
    faults: dict[tuple[str, str], FieldError] = {}
    first: dict[str, Cell] = {}
    models = 0
    for number, where in enumerate(cell_coordinates(spec)):
        try:
            here = build_cell(spec, number, where)
            one = Sound(here, plan_experiment(context, _named(spec, here)))
        except (PathError, ValidationError, InvalidError) as error:
            for key, fault in _faults(error, number, where):
                faults.setdefault(key, fault)
            if len(faults) >= MOST_ERRORS:
                break
            continue
        twin = first.setdefault(one.planned.spec.spec_hash, here)
        if twin is not here:
            message = f"equal to cell {twin.number}, {format_coordinates(twin.coordinates)}; name and tags do not count"
            refuse(f"cells[{number}]", format_coordinates(where), message)
        models += len(one.planned.arm_keys)
        if models > most * MODELS_A_CELL:
            asked, allowed = (
                "arms x seeds, over all cells",
                f"allowed: at most {most * MODELS_A_CELL} of them",
            )
            refuse("base", f"more than {most * MODELS_A_CELL} {asked}", allowed)
        sound.append(one)
    if faults:
        raise InvalidError(summary(list(faults.values())), list(faults.values()))
    return sound


def refuse(field: str, value: str, message: str) -> None:
    """Raise InvalidError for one field."""
    fault = FieldError(field=field, value=value, message=message)
    raise InvalidError(summary([fault]), [fault])


def _named(spec: SweepSpec, here: Cell) -> ExperimentSpec:
    """The cell's experiment, with a name that says which cell it is unless the overrides name it."""
    experiment = ExperimentSpec.model_validate(here.document)
    if "name" in here.coordinates:
        return experiment
    name = f"{experiment.name or spec.name or 'sweep'}: {format_coordinates(here.coordinates)}"
    return experiment.model_copy(update={"name": name[:200]})


def _faults(
    error: PathError | ValidationError | InvalidError, number: int, where: dict[str, object]
) -> Iterator[tuple[tuple[str, str], FieldError]]:
    """The faults of one cell. What no override touches is a fault of the base, told once for all cells: faults
    with equal keys are the same."""
    match error:
        case PathError():
            found = [FieldError(field=error.path, value=shown(error.value), message=error.message)]
        case ValidationError():
            located = [{**e, "loc": ("body", *e["loc"])} for e in error.errors(include_url=False)]
            found = field_errors(located, ExperimentSpec)
        case InvalidError():
            found = error.errors
    for fault in found:
        field, message = fault["field"], fault["message"]
        inside = "" if field == "body" else f".{field}"
        of_base = inside and not any(_meet(field.replace("[", ".").replace("]", ""), path) for path in where)
        place = f"base{inside}" if of_base else f"cells[{number}]{inside}"
        text = f"{message} (cell {number}: {format_coordinates(where)})"
        yield (place, message), FieldError(field=place, value=fault["value"], message=text)


def _meet(field: str, path: str) -> bool:
    """Whether one of the two lies inside the other."""
    return f"{field}.".startswith(f"{path}.") or f"{path}.".startswith(f"{field}.")
