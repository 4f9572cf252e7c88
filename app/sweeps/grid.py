"""Expansion of a sweep into its cells, all of which are checked before any is submitted."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import ValidationError

from app.core.context import Context
from app.core.errors import InvalidError
from app.core.validation import MOST_ERRORS, FieldError, field_errors, shown
from app.experiments.planning import PlannedExperiment, plan_experiment
from app.specs.experiment import ExperimentSpec
from app.specs.sweep import PathError, SweepSpec, build_cell, cell_coordinates, format_coordinates

MODELS_PER_CELL = 50
"""Maximum mean number of trained models (arms x seeds) per cell, which bounds what one request writes."""


class PlannedCell(NamedTuple):
    """A cell that can run and differs from every other cell. ``coordinates`` are its overrides by path."""

    number: int
    coordinates: dict[str, Any]
    experiment: PlannedExperiment


def expand(context: Context, spec: SweepSpec) -> list[PlannedCell]:
    """Every cell of the sweep. Raises InvalidError with the cells, fields and values that cannot run."""
    max_cells = context.settings.max_sweep_cells
    max_models = max_cells * MODELS_PER_CELL
    if spec.size > max_cells:  # before any work is done
        message = f"allowed: at most {max_cells} (BDLAB_MAX_SWEEP_CELLS)"
        raise InvalidError.of("grid" if spec.grid else "overrides", f"{shown(spec.size)} cells", message)
    cells: list[PlannedCell] = []
    errors: dict[tuple[str, str], FieldError] = {}
    by_hash: dict[str, PlannedCell] = {}
    models = 0
    for number, overrides in enumerate(cell_coordinates(spec)):
        try:
            experiment = plan_experiment(context, _build_experiment(spec, number, overrides))
        except (PathError, ValidationError, InvalidError) as error:
            for key, field_error in _locate_errors(error, number, overrides):
                errors.setdefault(key, field_error)
            if len(errors) >= MOST_ERRORS:
                break
            continue
        planned = PlannedCell(number, overrides, experiment)
        twin = by_hash.setdefault(experiment.spec.spec_hash, planned)
        if twin is not planned:
            message = f"equal to cell {twin.number}, {format_coordinates(twin.coordinates)}; name and tags do not count"
            raise InvalidError.of(f"cells[{number}]", format_coordinates(overrides), message)
        models += len(experiment.arm_keys)
        if models > max_models:
            value = f"more than {max_models} arms x seeds, over all cells"
            raise InvalidError.of("base", value, f"allowed: at most {max_models} of them")
        cells.append(planned)
    if errors:
        raise InvalidError.of_all(list(errors.values()))
    return cells


def _build_experiment(spec: SweepSpec, number: int, overrides: dict[str, Any]) -> ExperimentSpec:
    """The cell's experiment. Its name includes the coordinates unless an override sets it."""
    experiment = ExperimentSpec.model_validate(build_cell(spec, number, overrides).document)
    if "name" in overrides:
        return experiment
    name = f"{experiment.name or spec.name or 'sweep'}: {format_coordinates(overrides)}"
    return experiment.model_copy(update={"name": name[:200]})


def _locate_errors(
    error: PathError | ValidationError | InvalidError, number: int, overrides: dict[str, Any]
) -> Iterator[tuple[tuple[str, str], FieldError]]:
    """The errors of one cell with keys by which equal ones are recognized.

    An error in a field that no override sets is an error of the base, which is reported once for all cells.
    """
    match error:
        case PathError():
            errors = [FieldError(field=error.path, value=shown(error.value), message=error.message)]
        case ValidationError():
            located = [{**e, "loc": ("body", *e["loc"])} for e in error.errors(include_url=False)]
            errors = field_errors(located, ExperimentSpec)
        case InvalidError():
            errors = error.errors
    for item in errors:
        field, message = item["field"], item["message"]
        suffix = "" if field == "body" else f".{field}"
        path = field.replace("[", ".").replace("]", "")
        in_base = suffix and not any(_overlap(path, override) for override in overrides)
        location = f"base{suffix}" if in_base else f"cells[{number}]{suffix}"
        text = f"{message} (cell {number}: {format_coordinates(overrides)})"
        yield (location, message), FieldError(field=location, value=item["value"], message=text)


def _overlap(a: str, b: str) -> bool:
    """Whether one of two paths contains the other."""
    return f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}.")
