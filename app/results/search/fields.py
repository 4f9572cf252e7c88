"""The fields that results can be searched by, derived from the models of the spec."""

import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from app.core.validation import members
from app.results.search.parts import PARTS
from app.specs.experiment import LABELS, ExperimentSpec
from app.specs.summary import EFFECTIVENESS, METRICS

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
"""The fields of a row unless the request chooses others."""

_TAG = re.compile(r"tag\.[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_ABBREVIATIONS = {
    "asr": "results.attack_success_rate",
    "ca": "results.clean_accuracy",
    "der": f"results.{EFFECTIVENESS}",
}


@dataclass(frozen=True)
class Field:
    """A field of a row. ``part`` is the part of the spec that a field of the spec belongs to."""

    name: str
    source: Source
    number: bool = False
    """Whether its values may be numbers; only these fields can be compared with < and >."""
    text: bool = True
    """Whether its values may be texts. A field can be a number for one attack and a text for another."""
    part: str = ""

    @property
    def key(self) -> str:
        """The name within its source: the key of a tag, a metric, a column, or the path in the spec."""
        head, _, rest = self.name.partition(".")
        match self.source:
            case "tag" | "metric":
                return rest
            case "interval":
                return rest.rpartition(".")[0]
            case _:
                return self.name if self.source == "spec" else head


@cache
def all_fields() -> dict[str, Field]:
    """All fields by name, except tags, whose keys are free."""
    fields = [Field(name, "row", name == "seeds", name != "seeds") for name in ROW]
    fields += [Field(name, "time") for name in TIMES]
    fields += [Field(name, "experiment") for name in EXPERIMENT]
    for name, info in ExperimentSpec.model_fields.items():
        if name in {*LABELS, "seeds"}:
            continue
        part = {"defenses": "defense"}.get(name, name if name in PARTS else "other")
        for path, number, text in _leaves(part if part != "other" else name, info.annotation):
            fields.append(Field(path, "spec", number, text, part))
    for metric in (*METRICS, EFFECTIVENESS):
        fields.append(Field(f"results.{metric}", "metric", number=True, text=False))
        fields += [Field(f"results.{metric}.{end}", "interval", True, False) for end in INTERVAL]
    merged: dict[str, Field] = {}
    for field in fields:  # several attacks, for example, can have a field of the same name
        same = merged.get(field.name, field)
        merged[field.name] = replace(field, number=field.number or same.number, text=field.text or same.text)
    return merged


def find(name: str) -> Field | None:
    """The field called ``name``, or None."""
    if _TAG.fullmatch(name):
        return Field(name, "tag")
    return all_fields().get(name)


def matching(pattern: str) -> list[Field]:
    """The field ``pattern``, or for ``path.*`` all fields below the path except bounds of intervals; maybe none."""
    if pattern.endswith(".*") and pattern != "tag.*":
        below = [field for name, field in all_fields().items() if name.startswith(pattern[:-1])]
        return [field for field in below if field.source != "interval"]
    field = find(pattern)
    return [field] if field is not None else []


def near(name: str) -> list[str]:
    """At most five fields with a name similar to ``name``."""
    short = [_ABBREVIATIONS[name.lower()]] if name.lower() in _ABBREVIATIONS else []
    last = name.rpartition(".")[2]
    same_end = [field for field in all_fields() if field.rpartition(".")[2] == last]
    similar, less_similar = (get_close_matches(name, all_fields(), 5, cutoff) for cutoff in (0.8, 0.6))
    return list(dict.fromkeys([*short, *similar, *same_end, *less_similar]))[:5]


def _leaves(path: str, annotation: Any) -> list[tuple[str, bool, bool]]:
    """(path, whether it can be a number, whether it can be a text) of every field below ``path``."""
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
    """The item type of a tuple of models: each defense makes an arm, and so a row, of its own."""
    if get_origin(annotation) is tuple and any(members(part) for part in get_args(annotation)):
        return get_args(annotation)[0]
    return annotation


def _types(annotation: Any) -> list[Any]:
    """The types that a value can have; all types but int and float are indexed as text."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _types(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in _types(part)]
    return [annotation if isinstance(annotation, type) and not issubclass(annotation, BaseModel) else str]
