"""Stored specs as data."""

from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

from app.specs.experiment import ExperimentSpec
from app.specs.stored import MissingPluginError, SpecDocument, StoredSpec, StoredStudy, StudyDocument
from app.specs.study import StudySpec

SPEC: dict[str, Any] = {
    "name": "mine",
    "attack": {"name": "sig"},
    "defenses": [{"name": "abl"}, {"name": "abl", "arm": "second", "preset": "paper"}],
    "seeds": [2, 1],
    "tags": {"study": "a"},
    "priority": 3,
}


def stored(**fields: Any) -> StoredSpec:
    return StoredSpec(ExperimentSpec.model_validate(SPEC | fields).model_dump(mode="json"))


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("attack", ["sig", "none"])
def test_a_view_and_the_model_agree(attack: str, reference: bool) -> None:
    view = stored(attack={"name": attack}, reference=reference)
    spec = view.parse()
    assert (view.name, view.tags, view.priority, view.seeds) == ("mine", {"study": "a"}, 3, (2, 1))
    assert (view.dataset_name, view.model_name, view.attack_name) == ("digits", "small_cnn", attack)
    assert view.arms == spec.arms
    assert [fields["name"] for fields in view.defenses.values()] == ["abl", "abl"]
    assert view.missing_plugins() == []


def test_a_spec_whose_plug_ins_are_gone_can_be_read_but_not_parsed() -> None:
    document = stored(reference=True).document
    document["attack"] = {"name": "gone_attack", "levels": 3}
    document["defenses"].append({"name": "gone_defense", "arm": None})
    view = StoredSpec(document)
    assert view.attack_name == "gone_attack"
    assert view.arms == ("clean", "undefended", "abl", "second", "gone_defense")
    with pytest.raises(MissingPluginError, match="no plug-in defines gone_attack, gone_defense; put"):
        view.parse()


def test_a_spec_from_before_a_field_was_added_can_be_read() -> None:
    document = stored().document
    for name in ("tags", "priority", "reference"):
        del document[name]
    view = StoredSpec(document)
    assert (view.tags, view.priority, view.arms) == ({}, 0, ("undefended", "abl", "second"))
    assert view.parse().priority == 0


@pytest.mark.parametrize(
    ("attacks", "reference", "arms"),
    [
        (["sig"], True, ["clean", "undefended", "abl"]),
        (["sig"], False, ["undefended", "abl"]),
        (["sig", "none"], False, ["clean", "undefended", "abl"]),
        (["none"], False, ["clean", "abl"]),
    ],
)
def test_a_view_of_a_study(attacks: list[str], reference: bool, arms: list[str]) -> None:
    rows: list[dict[str, Any]] = [{"attack": {"name": name}} for name in attacks]
    spec = StudySpec.model_validate({"attacks": rows, "defenses": [{"name": "abl"}], "reference": reference})
    view = StoredStudy(spec.model_dump(mode="json"))
    assert (view.arms, view.rows, view.seeds) == (arms, {name: name for name in attacks}, (0,))
    assert view.parse() == spec
    gone = StoredStudy({**view.document, "attacks": [{"attack": {"name": "gone"}, "label": "old"}]})
    assert gone.rows == {"old": "gone"}
    with pytest.raises(MissingPluginError, match="no plug-in defines gone; put"):
        gone.parse()


@pytest.mark.parametrize(("model", "data"), [(ExperimentSpec, SpecDocument), (StudySpec, StudyDocument)])
def test_a_stored_document_is_returned_unchanged_and_documented_as_a_spec(model: Any, data: Any) -> None:
    class AsModel(BaseModel):
        spec: model

    class AsData(BaseModel):
        spec: data

    document = {"attack": {"name": "gone"}}
    assert AsData(spec=document).model_dump(mode="json") == {"spec": document}
    expected, actual = (TypeAdapter(model).json_schema(mode="serialization") for model in (AsModel, AsData))
    assert actual | {"title": ""} == expected | {"title": ""}
