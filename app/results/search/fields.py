"""The fields that results can be searched by, derived from the models of the spec."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from app.core.validation import members
from app.results.search.indexing import PARTS
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
    key: str
    """The name within its source: a column, the path in the spec, the key of a tag, a metric."""
    number: bool = False
    """Whether its values may be numbers; only these fields can be compared with < and >."""
    text: bool = True
    """Whether its values may be texts. A field can be a number for one attack and a text for another."""
    part: str = ""


@cache
def all_fields() -> dict[str, Field]:
    """All fields by name, except tags, whose keys are free."""
    fields = {name: Field(name, "row", name, name == "seeds", name != "seeds") for name in ROW}
    fields |= {name: Field(name, "time", name) for name in TIMES}
    fields |= {name: Field(name, "experiment", name) for name in EXPERIMENT}
    for name, info in ExperimentSpec.model_fields.items():
        if name in {*UNHASHED_FIELDS, "seeds"}:
            continue
        part = {"defenses": "defense"}.get(name, name if name in PARTS else "other")
        for path, types in _leaves(part if part != "other" else name, info.annotation):
            # Several attacks, for example, can have a field of this name.
            same = fields.get(path, Field(path, "spec", path, False, False, part))
            number = same.number or bool(types & {int, float})
            text = same.text or bool(types - {int, float, type(None)})
            fields[path] = replace(same, number=number, text=text)
    for metric in METRICS:
        name = f"results.{metric}"
        fields[name] = Field(name, "metric", metric, number=True, text=False)
        for end in INTERVAL:
            fields[f"{name}.{end}"] = Field(f"{name}.{end}", "interval", metric, number=True, text=False)
    return fields


def find(name: str) -> Field | None:
    """The field called ``name``, or None."""
    if _TAG.fullmatch(name):
        return Field(name, "tag", name.partition(".")[2])
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


def _leaves(path: str, annotation: Any) -> Iterator[tuple[str, set[Any]]]:
    """The path and the types of every field below ``path``."""
    models = members(annotation)
    if not models:
        yield path, _types(annotation)
    for model in models:
        for name, info in model.model_fields.items():
            yield from _leaves(f"{path}.{name}", info.annotation)


def _types(annotation: Any) -> set[Any]:
    """The types that a value can have. All types except int and float are indexed as text."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _types(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return {kind for part in get_args(annotation) for kind in _types(part)}
    return {annotation if isinstance(annotation, type) else str}
