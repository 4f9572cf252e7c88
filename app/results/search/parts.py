"""The parts of a spec that the index stores: one set of parts for each arm."""

from typing import Any, NamedTuple

from app.specs.base import canonical_json, digest
from app.specs.experiment import CLEAN, UNHASHED_FIELDS
from app.specs.flatten import flatten
from app.specs.stored import StoredSpec

PARTS = ("dataset", "model", "attack", "training", "other", "defense")
_OWN_PLACE = (*UNHASHED_FIELDS, "seeds", "defenses")
_NO_INFLUENCE = ("reference", "device")
"""Fields that do not influence the numbers of an arm."""


class Arm(NamedTuple):
    """An arm of a spec as the index describes it."""

    parts: dict[str, dict[str, Any]]
    """The fields of each of `PARTS`; only a defended arm has the part ``defense``."""
    setting: str
    """16 hexadecimal digits of a hash over everything that decides the numbers of the arm, except the seed."""
    defense: str
    """Name of the defense, or ``clean`` or ``undefended``."""


def describe_arm(spec: StoredSpec, arm: str) -> Arm:
    """The index entry of ``arm``. Of the spec's defenses it includes only the one that makes this arm."""
    document = spec.document
    other = {key: value for key, value in document.items() if key not in {*PARTS, *_OWN_PLACE}}
    parts = {name: document[name] for name in PARTS if name in document} | {"other": other}
    defense = spec.defenses.get(arm)
    if defense is not None:
        parts["defense"] = defense
    deciding = {name: dict(fields) for name, fields in parts.items()}
    deciding["other"] = {key: value for key, value in other.items() if key not in _NO_INFLUENCE}
    deciding["attack"].pop("export", None)
    deciding.get("defense", {}).pop("arm", None)
    if arm == CLEAN:
        deciding["attack"] = {}  # the clean arm is trained without the attack
    name = defense["name"] if defense is not None else arm
    return Arm(parts, digest([name if defense is None else "", deciding])[:16], name)


def indexed_fields(part: str, fields: dict[str, Any]) -> dict[str, float | str]:
    """The fields of a part that are not null, by path. Numbers become floats, everything else becomes text."""
    flat = flatten(fields, "" if part == "other" else part)
    return {path: _indexed(value) for path, value in flat.items() if value is not None}


def _indexed(value: Any) -> float | str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return float(value)
    return value if isinstance(value, str) else canonical_json(value)


def dataset_label(dataset: dict[str, Any]) -> str:
    """Name of a dataset on the leaderboard; with the key or id of an imported or uploaded dataset."""
    key = dataset.get("key") or dataset.get("dataset_id")
    return f"{dataset['name']}/{key}" if key else str(dataset["name"])
