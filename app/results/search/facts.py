"""From a spec to the parts that the index keeps, and to their fields as (path, value). Pure."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from app.specs.base import canonical_json, digest
from app.specs.experiment import CLEAN, UNHASHED_FIELDS
from app.specs.stored import StoredSpec

PARTS = ("dataset", "model", "attack", "training", "other", "defense")
_OWN_PLACE = (*UNHASHED_FIELDS, "seeds", "defenses")
_NO_NUMBERS = ("reference", "device")
"""Fields that change no arm's setting: what else is computed, and where."""

Fact = tuple[str, float | str]


class Arm(NamedTuple):
    """An arm of a spec, as the index sees it."""

    parts: dict[str, dict[str, Any]]
    """By the name of the part; a defended arm has all of `PARTS`, another one no ``defense``."""
    setting: str
    """16 hexadecimal digits over everything that decides the arm's numbers but the seed."""
    defense: str
    """The defense's name, or ``clean`` or ``undefended``."""


def arm_of(spec: StoredSpec, arm: str) -> Arm:
    """The parts of ``arm``; a defense counts for the arm that it makes."""
    document = spec.document
    other = {key: value for key, value in document.items() if key not in {*PARTS, *_OWN_PLACE}}
    parts = {name: document[name] for name in PARTS if name in document} | {"other": other}
    defense = spec.defenses.get(arm)
    if defense is not None:
        parts["defense"] = defense
    deciding = {
        **{name: dict(fields) for name, fields in parts.items()},
        "other": {key: value for key, value in other.items() if key not in _NO_NUMBERS},
    }
    deciding["attack"].pop("export", None)
    deciding.get("defense", {}).pop("arm", None)
    if arm == CLEAN:
        deciding["attack"] = {}  # the clean arm never meets it
    name = defense["name"] if defense is not None else arm
    return Arm(parts, digest([name if defense is None else "", deciding])[:16], name)


def facts(part: str, fields: dict[str, Any]) -> Iterator[Fact]:
    """Every field of a part that is not null: a number as a float, anything else as text."""
    yield from _flat("" if part == "other" else f"{part}.", fields)


def _flat(prefix: str, fields: dict[str, Any]) -> Iterator[Fact]:
    for name, value in fields.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _flat(f"{path}.", value)
        elif isinstance(value, bool):
            yield path, str(value).lower()
        elif isinstance(value, int | float):
            yield path, float(value)
        elif value is not None:
            yield path, value if isinstance(value, str) else canonical_json(value)


def dataset_label(dataset: dict[str, Any]) -> str:
    """How the leaderboard calls a data set: by its name, an imported or uploaded one by its key or id too."""
    key = dataset.get("key") or dataset.get("dataset_id")
    return f"{dataset['name']}/{key}" if key else str(dataset["name"])
