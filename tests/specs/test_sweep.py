"""Expansion of sweeps, and validation of studies."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.specs.experiment import ExperimentSpec
from app.specs.study import StudyParts, StudySpec
from app.specs.sweep import Cell, PathError, SweepSpec, build_cell, cell_coordinates

BASE: dict[str, Any] = {"attack": {"name": "badnets"}, "defenses": [{"name": "abl"}, {"name": "nad"}]}


def cells(**fields: Any) -> list[Cell]:
    spec = SweepSpec.model_validate(fields)
    return [build_cell(spec, *numbered) for numbered in enumerate(cell_coordinates(spec))]


def test_a_grid_is_every_combination_and_the_last_path_varies_fastest() -> None:
    made = cells(base=BASE, grid={"training.epochs": [1, 2], "attack.poisoning_rate": [0.1, 0.2]})
    assert [tuple(c.coordinates.values()) for c in made] == [(0.1, 1), (0.1, 2), (0.2, 1), (0.2, 2)]
    assert [c.number for c in made] == [0, 1, 2, 3]
    assert made[2].document == {
        "attack": {"name": "badnets", "poisoning_rate": 0.2},
        "defenses": BASE["defenses"],
        "training": {"epochs": 1},
    }


def test_a_path_may_index_a_list_and_shorter_paths_are_set_first() -> None:
    (made,) = cells(
        base=BASE, grid={"attack.alpha": [0.3], "attack": [{"name": "blend"}], "defenses.1.arm": ["b"]}
    )
    assert made.document["attack"] == {"name": "blend", "alpha": 0.3}
    assert made.document["defenses"] == [{"name": "abl"}, {"name": "nad", "arm": "b"}]
    assert BASE["defenses"][1] == {"name": "nad"}


def test_a_preset_that_is_swept_fills_the_other_fields() -> None:
    """So overrides must apply to what the client wrote, not to the spec with its defaults filled in."""
    made = cells(base=BASE, grid={"defenses.0.preset": ["steady", "paper"]})
    epochs = [ExperimentSpec.model_validate(c.document).defenses[0].isolation_epochs for c in made]  # type: ignore[union-attr]
    assert epochs == [24, 20]


def test_a_list_of_overrides_is_one_cell_each() -> None:
    made = cells(overrides=[{"seeds": 3}, {"seeds": [1, 2], "training.epochs": 5}])
    assert [c.document for c in made] == [{"seeds": [3]}, {"seeds": [1, 2], "training": {"epochs": 5}}]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("defenses.2.gamma", "2 is not an index of a list of 2"),
        ("defenses.x", "x is not an index"),
        ("attack.name.x", "neither an object nor a list"),
    ],
)
def test_an_error_names_a_path_that_does_not_exist(path: str, words: str) -> None:
    with pytest.raises(PathError, match=words) as caught:
        cells(base=BASE, grid={path: [1]})
    assert (caught.value.path, caught.value.value) == (path, 1)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"grid": {"seeds": [1]}, "overrides": [{"seeds": 2}]},
        {"grid": {"seeds": []}},
        {"grid": {"a..b": [1]}},
        {"grid": {"": [1]}},
        {"overrides": [{}]},
        {"grid": {"seeds": [1]}, "base": {"training": {"learning_rate": float("nan")}}},
        {"grid": {"name": ["a\0b"]}},
        {"grid": {"name": ["\ud800"]}},
        {"grid": {"seeds": [1]}, "bases": {}},
    ],
)
def test_invalid_sweeps_are_rejected(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SweepSpec.model_validate(fields)


VALUES = st.lists(st.integers(0, 9) | st.text("ab", max_size=2) | st.booleans(), min_size=1, max_size=4)


@given(st.dictionaries(st.sampled_from(["a", "b.c", "b.d.e", "f.0", "g"]), VALUES, min_size=1))
def test_every_cell_has_the_values_of_its_coordinates(grid: dict[str, list[Any]]) -> None:
    spec = SweepSpec(base={"b": {"kept": 1}, "f": [0, 1]}, grid=grid)
    places = list(cell_coordinates(spec))
    assert len(places) == spec.size
    assert {repr(sorted(p.items())) for p in places} == {
        repr(sorted(p.items())) for p in cell_coordinates(SweepSpec(grid=dict(reversed(grid.items()))))
    }
    for number, coordinates in enumerate(places):
        document: Any = build_cell(spec, number, coordinates).document
        assert document["b"]["kept"] == 1
        for path, value in coordinates.items():
            part = document
            for key in path.split("."):
                part = part[int(key)] if isinstance(part, list) else part[key]
            assert part == value


def test_a_sweep_is_counted_without_being_made() -> None:
    assert SweepSpec(grid={f"p{i}": list(range(1000)) for i in range(32)}).size == 1000**32


def study(**fields: Any) -> StudySpec:
    return StudySpec.model_validate({"attacks": [{"attack": {"name": "badnets"}}], **fields})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"attacks": []}, "at least 1"),
        ({"attacks": [{"attack": {"name": "sig"}}, {"attack": {"name": "sig", "amplitude": 9}}]}, "label"),
        (
            {"attacks": [{"attack": {"name": "sig"}}, {"attack": {"name": "sig"}, "label": "b"}]},
            "'sig' and 'b'",
        ),
        ({"defenses": [{"name": "abl"}, {"name": "abl", "arm": "b"}]}, "'abl' and 'b' are equal"),
        ({"seeds": [1, 1]}, "seeds must be distinct"),
        ({"epochs": 3}, "Extra inputs"),
    ],
)
def test_invalid_studies_are_rejected(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        study(**fields)


def test_extending_twice_is_extending_once() -> None:
    more = StudyParts.model_validate(
        {"defenses": [{"name": "nad"}], "seeds": [1], "attacks": [{"attack": {"name": "sig"}}]}
    )
    once = study().extended_with(more)
    assert [d.arm_name for d in once.defenses] == ["nad"]
    assert [a.row for a in once.attacks] == ["badnets", "sig"]
    assert once.seeds == (0, 1)
    assert once.extended_with(more) == once
    with pytest.raises(ValidationError, match="label"):
        once.extended_with(
            StudyParts.model_validate({"attacks": [{"attack": {"name": "sig", "amplitude": 9}}]})
        )
