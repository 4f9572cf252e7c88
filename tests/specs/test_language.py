"""The experiment language: documented, strict, canonical."""

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from app.specs.attack import AttackSpec
from app.specs.base import Spec, canonical_json
from app.specs.checks import find_problems, poison_count
from app.specs.dataset import DatasetSpec
from app.specs.defense import DefenseSpec
from app.specs.experiment import ExperimentSpec
from app.specs.facts import BUILT_IN, allocate
from app.specs.metrics import summarize
from app.specs.model import ModelSpec
from app.specs.stages import LAB_VERSION, plan
from app.specs.training import Augmentation, TrainingSpec


def _members(union: Any) -> list[type[Spec]]:
    return list(get_args(get_args(union)[0]))


EVERY_SPEC = [
    *(spec for union in (AttackSpec, DatasetSpec, DefenseSpec, ModelSpec) for spec in _members(union)),
    TrainingSpec,
    Augmentation,
    ExperimentSpec,
]


@pytest.mark.parametrize("spec", EVERY_SPEC, ids=lambda s: s.__name__)
def test_every_spec_and_field_is_documented(spec: type[BaseModel]) -> None:
    assert (spec.__doc__ or "").strip()
    for name, field in spec.model_fields.items():
        if name != "name" or spec is ExperimentSpec:
            assert field.description, f"{spec.__name__}.{name}"


def test_unknown_fields_are_rejected_at_every_depth() -> None:
    for path in ("", "dataset", "model", "attack", "training", "training.augmentation"):
        spec: dict[str, Any] = {"dataset": {"name": "digits"}, "model": {"name": "small_cnn"}}
        spec |= {"attack": {"name": "badnets"}, "training": {"augmentation": {}}}
        part = spec
        for key in filter(None, path.split(".")):
            part = part[key]
        part["learning_rte"] = 1
        with pytest.raises(ValidationError, match="learning_rte"):
            ExperimentSpec.model_validate(spec)


def test_the_canonical_form_is_equal_to_the_spec_and_stable() -> None:
    short = ExperimentSpec.model_validate({"attack": {"name": "sig"}, "defenses": [{"name": "abl"}]})
    text = canonical_json(short)
    again = ExperimentSpec.model_validate_json(text)
    assert again == short
    assert canonical_json(again) == text
    assert json.loads(text)["training"]["momentum"] == 0.9  # defaults are written out


def test_the_hash_covers_only_what_affects_the_numbers() -> None:
    spec = ExperimentSpec()
    assert ExperimentSpec(name="other", tags={"a": "b"}).spec_hash == spec.spec_hash
    assert ExperimentSpec(seeds=(1,)).spec_hash != spec.spec_hash
    assert (
        ExperimentSpec.model_validate({"attack": {"name": "badnets", "opacity": 1}}).spec_hash
        == spec.spec_hash
    )


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ({"seeds": [1, 1]}, "distinct"),
        ({"seeds": []}, "at least 1"),
        ({"defenses": [{"name": "abl"}, {"name": "abl"}]}, "set `arm`"),
        ({"defenses": [{"name": "abl", "arm": "clean"}]}, "distinct"),
        ({"attack": {"name": "badnets", "poisoning_rate": 1.5}}, "less than or equal to 1"),
        ({"attack": {"name": "badnets", "poisoning_rate": float("nan")}}, "finite"),
        ({"attack": {"name": "nonesuch"}}, "badnets"),
        ({"defenses": [{"name": "abl", "ranking_window": 30, "isolation_epochs": 20}]}, "ranking_window 30"),
        ({"tags": {"bad key": "x"}}, "tags"),
    ],
)
def test_invalid_specs_are_rejected(spec: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        ExperimentSpec.model_validate(spec)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"attack": {"name": "badnets", "target_class": 12}}, "attack.target_class"),
        ({"attack": {"name": "badnets", "size": 9}}, "attack.size"),
        ({"attack": {"name": "badnets", "poisoning_rate": 0.95}}, "attack.poisoning_rate"),
        (
            {"attack": {"name": "sig", "rate_of": "training_set", "poisoning_rate": 0.5}},
            "attack.poisoning_rate",
        ),
        ({"dataset": {"name": "digits", "train_size": 2000}}, "dataset.train_size"),
        ({"training": {"batch_size": 5000}}, "training.batch_size"),
    ],
)
def test_specs_that_do_not_fit_the_dataset_are_rejected_by_field(fields: dict[str, Any], field: str) -> None:
    problems = find_problems(ExperimentSpec.model_validate(fields), BUILT_IN["digits"])
    assert [problem.field for problem in problems] == [field]


def test_a_rate_rounds_to_at_least_one_sample() -> None:
    spec = ExperimentSpec.model_validate({"attack": {"name": "badnets", "poisoning_rate": 1e-6}})
    assert poison_count(spec, BUILT_IN["digits"]) == 1


@given(st.lists(st.integers(0, 500), min_size=1, max_size=20), st.data())
def test_allocation_is_proportional_and_complete(counts: list[int], data: st.DataObject) -> None:
    total = data.draw(st.integers(0, sum(counts)))
    shares = allocate(tuple(counts), total)
    assert sum(shares) == total
    assert all(share <= count for share, count in zip(shares, counts, strict=True))
    if sum(counts):
        assert all(abs(s - c * total / sum(counts)) < 1 for s, c in zip(shares, counts, strict=True))


def test_stage_keys_change_only_with_what_they_depend_on() -> None:
    def keys(**fields: Any) -> dict[tuple[str, str | None], str]:
        spec = ExperimentSpec.model_validate({"defenses": [{"name": "abl"}], "reference": True, **fields})
        return {(stage.kind, stage.arm): stage.key for stage in plan(spec)}

    base = keys()
    assert base == keys(name="renamed", tags={"x": "y"}, device="cpu")
    other_attack = keys(attack={"name": "badnets", "size": 2})
    assert other_attack["victim", "clean"] == base["victim", "clean"]
    assert other_attack["victim", "undefended"] != base["victim", "undefended"]
    other_unlearning = keys(defenses=[{"name": "abl", "unlearning_epochs": 3}])
    assert other_unlearning["finetune", "abl"] == base["finetune", "abl"]
    assert other_unlearning["unlearning", "abl"] != base["unlearning", "abl"]
    assert set(keys(seeds=[1]).values()).isdisjoint(base.values())


def test_a_new_lab_version_changes_keys_but_not_random_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [(stage.key, stage.stream) for stage in plan(ExperimentSpec())]
    monkeypatch.setattr("app.specs.stages.LAB_VERSION", LAB_VERSION + 1)
    after = [(stage.key, stage.stream) for stage in plan(ExperimentSpec())]
    assert [stream for _, stream in after] == [stream for _, stream in before]
    assert {key for key, _ in after}.isdisjoint(key for key, _ in before)


def test_summary_is_the_student_t_interval() -> None:
    summary = summarize([0.1, 0.2, 0.3, None])
    assert summary is not None
    half = 4.302653 * 0.1 / 3**0.5  # the table's value for two degrees of freedom
    assert summary == {
        "mean": pytest.approx(0.2),
        "low": pytest.approx(0.2 - half),
        "high": pytest.approx(0.2 + half),
        "n": 3,
    }
    assert summarize([0.5]) == {"mean": 0.5, "low": None, "high": None, "n": 1}
    assert summarize([None]) is None
