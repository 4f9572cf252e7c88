"""Repair defenses: they remove backdoors, keep the accuracy of clean models, and warn where they do not."""

import csv

import pytest

from tests.lab.defenses.cases import BADNETS, NOTHING, SHORT, Spec, defended, number

# The published betas are for images of 32x32; a mean over few positions weighs the maps of 8x8 images far more.
NAD: Spec = {"teacher_steps": 100, "steps": 300, "betas": [32, 64, 64]}
# More clean images and larger steps than the defaults: a digits victim takes few steps to train.
STRONG: dict[str, Spec] = {
    "fine_tuning": {"steps": 300, "learning_rate": 0.1},
    "fine_pruning": {"steps": 300, "learning_rate": 0.1},
    "nad": {**NAD, "first_steps": 200},
    "mcr": {"tuning_steps": 300, "tuning_learning_rate": 0.1, "steps": 200, "point": 0.8},
    "ft_sam": {"steps": 300, "learning_rate": 0.05},
    # With fewer steps or less accuracy to lose, what is left depends on how a processor rounds.
    "anp": {"steps": 600, "max_accuracy_drop": 0.2},
    "i_bau": {"steps": 20},
}
GENTLE: dict[str, Spec] = {
    "fine_tuning": {"steps": 100},
    "fine_pruning": {"steps": 100},
    "nad": {**NAD, "teacher_steps": 20, "steps": 20, "first_steps": 0},
    "mcr": {"tuning_steps": 100, "steps": 100},
    "ft_sam": {"steps": 50, "half_period": None, "learning_rate": 0.01},
    "anp": {"steps": 300, "max_accuracy_drop": 0.01},
}


@pytest.mark.parametrize("name", STRONG)
def test_a_backdoor_is_removed(name: str) -> None:
    done = defended(BADNETS, {"name": name, "clean_ratio": 0.2, **STRONG[name]})
    assert number(done, "undefended", "attack_success_rate") > 0.95
    assert number(done, name, "attack_success_rate") < 0.7
    assert number(done, name, "clean_accuracy") > (0.5 if name == "i_bau" else 0.85)


@pytest.mark.parametrize("name", GENTLE)
def test_a_clean_model_keeps_its_accuracy(name: str) -> None:
    done = defended(NOTHING, {"name": name, "clean_ratio": 0.2, **GENTLE[name]})
    assert number(done, name, "clean_accuracy") >= number(done, "clean", "clean_accuracy") - 0.04


def test_lost_accuracy_is_warned_of_from_clean_images_alone() -> None:
    """A far too large learning rate: accuracy on test images is lost, and the result has a warning."""
    done = defended(BADNETS, {"name": "i_bau", "learning_rate": 0.1, "rounds": 2, "steps": 8})
    assert number(done, "i_bau", "clean_accuracy") < 0.9
    assert any("72 clean training images fell from" in message for message in done.warnings)


def test_pruning_nothing_is_warned_of() -> None:
    done = defended(BADNETS, {"name": "anp", "steps": 4, "learning_rate": 0.001, "threshold": 0.1})
    assert any("no neuron was pruned" in message for message in done.warnings)
    assert number(done, "anp", "clean_accuracy") == number(done, "undefended", "clean_accuracy")


@pytest.mark.parametrize(
    ("name", "column", "rows"), [("anp", "threshold", 19), ("mcr", "t", 11), ("fine_pruning", "pruned", 0)]
)
def test_the_models_that_a_repair_chooses_from_are_a_table(name: str, column: str, rows: int) -> None:
    """With what the defense measured, and beside it what the harness measured with test images."""
    done = defended(BADNETS, {"name": name, **SHORT[name]})
    table = list(csv.DictReader(done.files[f"seed-0/{name}/sweep.csv"].decode().splitlines()))
    assert {column, "clean_accuracy", "attack_success_rate"} < set(table[0])
    assert len(table) == rows or rows == 0
    assert f"seed-0/{name}/sweep.png" in done.files
    assert float(table[0][column]) == 0
    positions = [float(row[column]) for row in table]
    assert positions == sorted(positions)
