"""The catalog, by reflection over the specs: a new spec class appears without further code."""

import inspect
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined, to_jsonable_python

from app.core.validation import members, name_of
from app.data import local_datasets
from app.data.catalog.schemas import Catalog, DatasetEntry, DefenseEntry, Entry, ModelEntry, PresetEntry
from app.data.resolve import is_installed
from app.specs.base import PresetSpec
from app.specs.dataset import Imported, Uploaded
from app.specs.defenses.base import Defense
from app.specs.experiment import ExperimentSpec
from app.specs.models.base import Architecture, install_command
from app.specs.training import Augmentation

_CITATION = re.compile(r"\(([^()]*\b(?:19|20)\d\d[a-z]?)\)")


def catalog(folder: Path) -> Catalog:
    """What a spec can contain; ``folder`` is the data folder."""
    return Catalog(
        attacks=_entries("attack"),
        defenses=_defenses(),
        datasets=_datasets(folder),
        models=_models(),
        training=[*_entries("training"), _entry(Augmentation)],
    )


def names(field: str) -> list[str]:
    """The names that a field of the spec can have, such as those of all attacks, in the order of the catalog."""
    return [str(name_of(model)) for model in members(ExperimentSpec.model_fields[field].annotation)]


def _entries(field: str) -> list[Entry]:
    return [_entry(model) for model in members(ExperimentSpec.model_fields[field].annotation)]


def _defenses() -> list[DefenseEntry]:
    models = members(ExperimentSpec.model_fields["defenses"].annotation)
    return [
        DefenseEntry(**entry.model_dump(), kind=model.kind)
        for entry, model in zip(_entries("defenses"), models, strict=True)
        if issubclass(model, Defense)
    ]


def _models() -> list[ModelEntry]:
    entries = []
    for entry, model in zip(
        _entries("model"), members(ExperimentSpec.model_fields["model"].annotation), strict=True
    ):
        extra = model.extra if issubclass(model, Architecture) else ""
        present, command = (is_installed(extra), install_command(extra)) if extra else (True, None)
        entries.append(ModelEntry(**entry.model_dump(), present=present, command=command))
    return entries


def _datasets(folder: Path) -> list[DatasetEntry]:
    entries = []
    has_folder = folder.is_dir()
    for entry in _entries("dataset"):
        if entry.name == name_of(Imported):
            template = entry
            continue
        if entry.name == name_of(Uploaded):
            command = "bdlab datasets upload FILE"
            entries.append(DatasetEntry(**entry.model_dump(), present=None, facts=None, command=command))
            continue
        present = local_datasets.present(entry.name, folder)
        more = {
            "present": present if has_folder or present else None,
            "facts": local_datasets.facts(entry.name, folder),
            "command": local_datasets.command(entry.name),
        }
        entries.append(DatasetEntry(**entry.model_dump(), **more))
    command = "bdlab data import FILE --name KEY"
    entries.append(DatasetEntry(**template.model_dump(), present=None, facts=None, command=command))
    for key, dataset in local_datasets.imported(folder).items():
        more = {"key": key, "present": True, "facts": dataset.facts, "command": None}
        defaults = {**template.defaults, "key": key}
        entries.append(DatasetEntry(**{**template.model_dump(), "defaults": defaults}, **more))
    return entries


def _entry(model: type[BaseModel]) -> Entry:
    text = inspect.getdoc(model) or ""
    return Entry(
        name=name_of(model) or model.__name__.removesuffix("Spec").lower(),
        summary=text.partition("\n")[0],
        description=text,
        source=_source(model, text),
        schema_=model.model_json_schema(),
        defaults=_defaults(model),
        presets=_presets(model),
    )


def _presets(model: type[BaseModel]) -> list[PresetEntry]:
    if not issubclass(model, PresetSpec) or not model.presets:
        return []
    default = model.model_fields["preset"].default
    return [
        PresetEntry(name=name, default=name == default, **preset._asdict())
        for name, preset in model.presets.items()
    ]


def _source(model: type[BaseModel], text: str) -> str | None:
    """The papers that the documentation cites in parentheses, then the sources of the fields."""
    sources = _CITATION.findall(text)
    for field in model.model_fields.values():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and "source" in extra:
            sources.extend(str(extra["source"]).split("; "))
    return "; ".join(dict.fromkeys(sources)) or None


def _defaults(model: type[BaseModel]) -> dict[str, Any]:
    fields = {name: field.get_default() for name, field in model.model_fields.items()}
    return {n: to_jsonable_python(value) for n, value in fields.items() if value is not PydanticUndefined}
