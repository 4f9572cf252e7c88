"""The fields that results can be searched by, found by reflection over the spec."""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from app.core.validation import members
from app.results.search.facts import PARTS
from app.specs.experiment import UNHASHED_FIELDS, ExperimentSpec
from app.specs.metrics import EFFECTIVENESS, METRICS

Source = Literal["row", "time", "experiment", "spec", "tag", "metric", "interval"]

ROW = ("experiment_id", "arm", "name", "setting", "seeds")
TIMES = ("created_at",)
EXPERIMENT = ("status", "spec_hash")
INTERVAL = ("low", "high", "n")
DEFAULT = (
    "experiment_id",
    "name",
    "arm",
    "dataset.name",
    "model.name",
    "attack.name",
    "defense.name",
    "seeds",
    "results.clean_accuracy",
    "results.clean_accuracy.low",
    "results.clean_accuracy.high",
    "results.attack_success_rate",
    "results.attack_success_rate.low",
    "results.attack_success_rate.high",
    f"results.{EFFECTIVENESS}",
)
"""What a row shows if the request does not choose."""

_TAG = re.compile(r"tag\.[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_SHORT = {
    "asr": "results.attack_success_rate",
    "ca": "results.clean_accuracy",
    "der": f"results.{EFFECTIVENESS}",
}


@dataclass(frozen=True)
class Field:
    """A field of a row. ``part`` is the part of the spec that it belongs to."""

    name: str
    source: Source
    number: bool = False
    """Whether it holds numbers; then it can be compared with < and >."""
    text: bool = True
    """Whether it holds texts. A field may be a number for one attack and a text for another."""
    part: str = ""

    @property
    def key(self) -> str:
        """The name within its source: the tag's key, the metric."""
        head, _, rest = self.name.partition(".")
        match self.source:
            case "tag" | "metric":
                return rest
            case "interval":
                return rest.rpartition(".")[0]
            case _:
                return self.name if self.source == "spec" else head


@cache
def known() -> dict[str, Field]:
    """Every field by its name, but tags, which are free."""
    fields = [Field(name, "row", name == "seeds", name != "seeds") for name in ROW]
    fields += [Field(name, "time") for name in TIMES]
    fields += [Field(name, "experiment") for name in EXPERIMENT]
    for name, info in ExperimentSpec.model_fields.items():
        if name in {*UNHASHED_FIELDS, "seeds"}:
            continue
        part = {"defenses": "defense"}.get(name, name if name in PARTS else "other")
        for path, number, text in _leaves(part if part != "other" else name, info.annotation):
            fields.append(Field(path, "spec", number, text, part))
    for metric in (*METRICS, EFFECTIVENESS):
        fields.append(Field(f"results.{metric}", "metric", number=True, text=False))
        fields += [Field(f"results.{metric}.{end}", "interval", True, False) for end in INTERVAL]
    found: dict[str, Field] = {}
    for field in fields:
        twin = found.get(field.name, field)
        found[field.name] = Field(
            field.name, field.source, field.number or twin.number, field.text or twin.text, field.part
        )
    return found


def find(name: str) -> Field | None:
    """The field called ``name``, or None."""
    if _TAG.fullmatch(name):
        return Field(name, "tag")
    return known().get(name)


def matching(pattern: str) -> list[Field]:
    """The fields that ``pattern`` names: one, or with ``.*`` at its end all below; an interval's ends only by name."""
    if pattern.endswith(".*") and pattern != "tag.*":
        below = [field for name, field in known().items() if name.startswith(pattern[:-1])]
        return [field for field in below if field.source != "interval"]
    field = find(pattern)
    return [field] if field is not None else []


def near(name: str) -> list[str]:
    """At most five known fields that ``name`` may have been meant for."""
    short = [_SHORT[name.lower()]] if name.lower() in _SHORT else []
    last = name.rpartition(".")[2]
    same_end = [known_name for known_name in known() if known_name.rpartition(".")[2] == last]
    near_by, further = (get_close_matches(name, known(), 5, cutoff) for cutoff in (0.8, 0.6))
    return list(dict.fromkeys([*short, *near_by, *same_end, *further]))[:5]


def _leaves(path: str, annotation: Any) -> list[tuple[str, bool, bool]]:
    """(path, whether numbers, whether texts) of every field below ``path``."""
    models = members(_bare(annotation))
    if not models:
        number = bool({int, float} & set(_types(annotation)))
        return [(path, number, bool(set(_types(annotation)) - {int, float, type(None)}))]
    return [
        leaf
        for model in models
        for name, info in model.model_fields.items()
        for leaf in _leaves(f"{path}.{name}", info.annotation)
    ]


def _bare(annotation: Any) -> Any:
    """The items of a tuple of models: every defense makes an arm of its own."""
    if get_origin(annotation) is tuple and any(members(part) for part in get_args(annotation)):
        return get_args(annotation)[0]
    return annotation


def _types(annotation: Any) -> list[Any]:
    """What a value may be: int, float, or something that the index keeps as text."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _types(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in _types(part)]
    return [annotation if isinstance(annotation, type) and not issubclass(annotation, BaseModel) else str]
