"""Repair defenses: they remove backdoors, keep the accuracy of clean models, and warn where they do not."""

import pytest

from tests.lab.defenses.cases import BADNETS, NOTHING, Spec, defended, number

# More clean images and larger steps than the defaults: digits have few images and so few steps an epoch.
STRONG: dict[str, Spec] = {
    "fine_tuning": {"epochs": 40, "learning_rate": 0.1},
    "fine_pruning": {"epochs": 30, "learning_rate": 0.1},
    "nad": {"epochs": 30, "learning_rate": 0.05},
    "mcr": {"tuning_epochs": 40, "tuning_learning_rate": 0.1, "epochs": 30},
    "ft_sam": {"epochs": 40, "learning_rate": 0.05},
    "anp": {"steps": 300},
    "i_bau": {},
}
GENTLE: dict[str, Spec] = {
    "fine_tuning": {"epochs": 20},
    "fine_pruning": {"epochs": 20},
    "nad": {"epochs": 5},
    "mcr": {"tuning_epochs": 20, "epochs": 20},
    "ft_sam": {"epochs": 10},
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
    assert number(done, name, "clean_accuracy") >= number(done, "clean", "clean_accuracy") - 0.03


def test_lost_accuracy_is_warned_of_from_held_out_images_alone() -> None:
    """A far too large learning rate: accuracy on test images is lost, and the result has a warning."""
    done = defended(BADNETS, {"name": "i_bau", "learning_rate": 0.1, "rounds": 2})
    assert number(done, "i_bau", "clean_accuracy") < 0.9
    assert any("held-out clean images fell from" in message for message in done.warnings)


def test_pruning_nothing_is_warned_of() -> None:
    done = defended(BADNETS, {"name": "anp", "steps": 4, "learning_rate": 0.001, "threshold": 0.1})
    assert any("no neuron was pruned" in message for message in done.warnings)
    assert number(done, "anp", "clean_accuracy") == number(done, "undefended", "clean_accuracy")
