"""A sweep: one base spec and the overrides that make its cells. Pure expansion, cell by cell."""

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
    """A base spec, and either a grid of values by path or an explicit list of overrides.

    A path is dotted: ``attack.poisoning_rate``, ``defenses.0.isolation_ratio``, ``seeds``. A shorter path is set
    before a longer one, so ``attack`` may be swept beside ``attack.poisoning_rate``.
    """

    name: str = field("", "A name for people.", max_length=200)
    base: dict[str, Any] = field(
        {}, "The experiment that every cell starts from. What the overrides set may be left out."
    )
    grid: dict[Path, Annotated[list[Any], Field(min_length=1)]] = field(
        {},
        "Values by path. Every combination is a cell; the paths are taken in alphabetical order, "
        "and the last one varies fastest.",
        max_length=32,
    )
    overrides: tuple[Overrides, ...] = field((), "One cell for each; values by path. Instead of a grid.")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if bool(self.grid) == bool(self.overrides):
            raise ValueError("give either grid or overrides; they say how the cells differ from the base")
        return self

    @model_validator(mode="after")
    def _storable(self) -> Self:
        for value in _leaves([self.base, self.grid, list(self.overrides)]):
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{value} is no number that JSON knows")
            if isinstance(value, str) and ("\0" in value or any("\ud800" <= c <= "\udfff" for c in value)):
                raise ValueError("a text holds U+0000 or half a character, which cannot be stored")
        return self

    @property
    def size(self) -> int:
        """How many cells there are, counted without making them."""
        return math.prod(map(len, self.grid.values())) if self.grid else len(self.overrides)


class Cell(NamedTuple):
    """One cell before its validation: its ``number`` from 0, its ``coordinates``, and its spec as JSON."""

    number: int
    coordinates: dict[str, Any]
    document: dict[str, Any]


class PathError(ValueError):
    """An override's path leads nowhere in the base spec."""

    def __init__(self, path: str, value: Any, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path, self.value, self.message = path, value, message


def coordinates(spec: SweepSpec) -> Iterator[dict[str, Any]]:
    """The overrides of each cell, in the order of their numbers; made one at a time."""
    if not spec.grid:
        yield from spec.overrides
        return
    paths = sorted(spec.grid)
    for values in product(*(spec.grid[path] for path in paths)):
        yield dict(zip(paths, values, strict=True))


def cell(spec: SweepSpec, number: int, where: dict[str, Any]) -> Cell:
    """The cell at ``where``: the base with these overrides. Raises PathError."""
    document: Any = spec.base
    for path in sorted(where, key=lambda path: (path.count("."), path)):
        value = where[path]
        if path == SEEDS and isinstance(value, int):
            value = [value]
        try:
            document = _put(document, path.split("."), value)
        except LookupError as error:
            raise PathError(path, where[path], str(error.args[0])) from None
    return Cell(number, where, document)


def described(where: dict[str, Any]) -> str:
    """A cell's coordinates for people, such as ``attack.poisoning_rate=0.1, seeds=[0]``."""
    return ", ".join(f"{path}={canonical_json(where[path])}" for path in sorted(where))


def _put(value: Any, path: list[str], new: Any) -> Any:
    """``value`` with ``new`` at ``path``; the parts that do not change are shared, not copied."""
    if not path:
        return new
    head, *rest = path
    if isinstance(value, dict):
        return {**value, head: _put(value.get(head, {}), rest, new)}
    if isinstance(value, list):
        if not (head.isascii() and head.isdigit() and int(head) < len(value)):
            raise LookupError(f"{head} is no place in a list of {len(value)}; allowed: 0 to {len(value) - 1}")
        place = int(head)
        return [*value[:place], _put(value[place], rest, new), *value[place + 1 :]]
    raise LookupError(f"{head} lies inside a value that is neither an object nor a list")


def _leaves(value: Any) -> Iterator[Any]:
    """Every key and every value that is no container, without recursion."""
    waiting = [value]
    while waiting:
        here = waiting.pop()
        if isinstance(here, dict):
            waiting += [*here, *here.values()]
        elif isinstance(here, list):
            waiting += here
        else:
            yield here
