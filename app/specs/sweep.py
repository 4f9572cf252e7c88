"""A sweep: one base spec and the overrides that make its cells."""

import math
from collections.abc import Iterator
from itertools import product
from typing import Annotated, Any, NamedTuple, Self

from pydantic import Field, StringConstraints, model_validator

from app.specs.base import Spec, canonical_json, field

SEEDS = "seeds"
Path = Annotated[str, StringConstraints(pattern=r"^[^.\s]+(\.[^.\s]+)*$", max_length=200)]
Overrides = Annotated[dict[Path, Any], Field(min_length=1, max_length=32)]


class SweepSpec(Spec):
    """A base spec with either a grid of values by path or a list of overrides.

    A path is dotted: ``attack.poisoning_rate``, ``defenses.0.isolation_ratio``, ``seeds``. Shorter paths are set before
    longer ones, so that ``attack`` and ``attack.poisoning_rate`` may both be swept.
    """

    name: str = field("", "A name for people.", max_length=200)
    base: dict[str, Any] = field(
        {}, "The experiment that every cell starts from. Fields set by every cell may be omitted."
    )
    grid: dict[Path, Annotated[list[Any], Field(min_length=1)]] = field(
        {},
        "Values by path. Every combination is a cell. Paths are sorted alphabetically; the last one varies fastest.",
        max_length=32,
    )
    overrides: tuple[Overrides, ...] = field((), "Values by path, one object per cell. Excludes grid.")

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if bool(self.grid) == bool(self.overrides):
            raise ValueError("exactly one of grid and overrides is required")
        return self

    @model_validator(mode="after")
    def _check_storable(self) -> Self:
        for value in _leaves([self.base, self.grid, list(self.overrides)]):
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{value} is not a number in JSON")
            if isinstance(value, str) and ("\0" in value or any("\ud800" <= c <= "\udfff" for c in value)):
                raise ValueError("strings with U+0000 or unpaired surrogates cannot be stored")
        return self

    @property
    def size(self) -> int:
        """The number of cells."""
        return math.prod(map(len, self.grid.values())) if self.grid else len(self.overrides)


class Cell(NamedTuple):
    """One cell before validation: its ``number`` from 0, its ``coordinates``, and its spec as JSON."""

    number: int
    coordinates: dict[str, Any]
    document: dict[str, Any]


class PathError(ValueError):
    """The path of an override does not exist in the base spec."""

    def __init__(self, path: str, value: Any, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path, self.value, self.message = path, value, message


def cell_coordinates(spec: SweepSpec) -> Iterator[dict[str, Any]]:
    """The overrides of each cell by path, in the order of the cells."""
    if not spec.grid:
        yield from spec.overrides
        return
    paths = sorted(spec.grid)
    for values in product(*(spec.grid[path] for path in paths)):
        yield dict(zip(paths, values, strict=True))


def build_cell(spec: SweepSpec, number: int, coordinates: dict[str, Any]) -> Cell:
    """The cell with these ``coordinates``: the base with these overrides. Raises PathError."""
    document: Any = spec.base
    for path in sorted(coordinates, key=lambda path: (path.count("."), path)):
        value = coordinates[path]
        if path == SEEDS and isinstance(value, int):
            value = [value]
        try:
            document = _with_value(document, path.split("."), value)
        except LookupError as error:
            raise PathError(path, coordinates[path], str(error.args[0])) from None
    return Cell(number, coordinates, document)


def format_coordinates(coordinates: dict[str, Any]) -> str:
    """A cell's coordinates as text, such as ``attack.poisoning_rate=0.1, seeds=[0]``."""
    return ", ".join(f"{path}={canonical_json(coordinates[path])}" for path in sorted(coordinates))


def _with_value(value: Any, path: list[str], new: Any) -> Any:
    """A copy of ``value`` with ``new`` at ``path``. Unchanged parts are shared, since a sweep has many cells."""
    if not path:
        return new
    head, *rest = path
    if isinstance(value, dict):
        return {**value, head: _with_value(value.get(head, {}), rest, new)}
    if isinstance(value, list):
        if not (head.isascii() and head.isdigit() and int(head) < len(value)):
            raise LookupError(
                f"{head} is not an index of a list of {len(value)}; allowed: 0 to {len(value) - 1}"
            )
        index = int(head)
        return [*value[:index], _with_value(value[index], rest, new), *value[index + 1 :]]
    raise LookupError(f"{head} is inside a value that is neither an object nor a list")


def _leaves(value: Any) -> Iterator[Any]:
    """Every key and every value that is not a container. Without recursion, since a request may nest deeply."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending += [*item, *item.values()]
        elif isinstance(item, list):
            pending += item
        else:
            yield item
