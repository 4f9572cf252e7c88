"""Presets: named settings of attacks and defenses; and the sources of every default."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from app.core.validation import members
from app.data.catalog.service import catalog
from app.specs.base import PresetSpec
from app.specs.defenses.abl import Abl
from app.specs.experiment import ExperimentSpec
from app.specs.stages import arm_keys, plan

PAGE = Path(__file__).parents[2] / "docs" / "results" / "fidelity.md"
OWN = {"abl_plus", "none", "given"}
"""A method of this project, the absence of an attack, and a set that came poisoned: they have no published setting."""
UNSOURCED = {"name", "arm", "preset", "export"}
"""Fields that are no hyperparameters."""
METHODS: list[type[PresetSpec]] = [
    model
    for field in ("attack", "defenses")
    for model in members(ExperimentSpec.model_fields[field].annotation)
    if model.model_fields["name"].default not in OWN
]


def with_preset(model: type[PresetSpec], preset: str) -> PresetSpec:
    return model.model_validate({"name": model.model_fields["name"].default, "preset": preset})


@pytest.mark.parametrize("model", METHODS, ids=lambda model: model.__name__)
def test_every_method_has_presets_that_are_valid_and_name_a_source(model: type[PresetSpec]) -> None:
    field = model.model_fields["preset"]
    assert get_args(field.annotation) == tuple(model.presets)
    assert not model.presets[field.default].values  # the default preset is what the fields say
    for name, preset in model.presets.items():
        assert preset.source, name
        assert preset.summary, name
        spec = with_preset(model, name)
        for key, value in preset.values.items():
            assert getattr(spec, key) == value
            assert value != model.model_fields[key].default, f"{name} sets {key} to its default"


def test_a_field_beside_a_preset_wins_and_shows_in_the_canonical_spec() -> None:
    spec = Abl.model_validate({"name": "abl", "preset": "authors", "isolation_loss": "local_gradient_ascent"})
    document = spec.model_dump(mode="json")
    assert document["preset"] == "authors"
    assert document["isolation_loss"] == "local_gradient_ascent"
    assert document["isolation_epochs"] == 10


@pytest.mark.parametrize("preset", ["no-such", {}, 3, None, ["paper"]])
def test_what_is_no_preset_is_refused_by_name(preset: Any) -> None:
    with pytest.raises(ValidationError) as error:
        Abl.model_validate({"name": "abl", "preset": preset})
    assert [problem["loc"] for problem in error.value.errors()] == [("preset",)]


def test_a_preset_shares_stages_and_numbers_with_the_same_fields() -> None:
    values = dict(Abl.presets["authors"].values)
    named, spelled = (
        ExperimentSpec.model_validate({"defenses": [{"name": "abl", "arm": "abl"} | fields]})
        for fields in ({"preset": "authors"}, values)
    )
    assert [s.key for s in plan(named)] == [s.key for s in plan(spelled)]
    assert arm_keys(named, plan(named)) == arm_keys(spelled, plan(spelled))


def test_the_catalog_names_presets_and_the_default() -> None:
    entry = next(entry for entry in catalog(Path("none")).defenses if entry.name == "abl")
    assert [(preset.name, preset.default) for preset in entry.presets] == [
        ("steady", True),
        ("paper", False),
        ("authors", False),
    ]


def listed_sources() -> list[str]:
    table = PAGE.read_text().partition("## Sources")[2]
    return re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)


def test_every_default_names_a_source_of_the_fidelity_page() -> None:
    listed = listed_sources()
    assert len(listed) > 20
    unlisted, unused = [], set(listed)
    document = catalog(Path("none"))
    for entry in (*document.attacks, *document.defenses, *document.models, *document.training):
        for name, field in entry.schema_["properties"].items():
            if name in UNSOURCED:
                continue
            source = field.get("source", "")
            named = {key for key in listed if key in source}
            unused -= named
            if not named:
                unlisted.append(f"{entry.name}.{name}: {source!r}")
    assert not unlisted
    assert not unused
