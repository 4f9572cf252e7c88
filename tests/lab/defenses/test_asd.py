"""ASD: which samples keep their labels in each phase."""

import pytest
import torch

from app.specs.checks import find_problems
from app.specs.experiment import ExperimentSpec
from app.specs.facts import BUILT_IN
from tests.lab.defenses.cases import BADNETS, defended, number, spec
from worker.lab.defenses.asd import lowest_of_each_class


def test_the_first_pool_is_the_clean_images_and_the_best_of_each_class() -> None:
    losses = torch.tensor([0.3, 0.1, 0.2, 0.9, 0.5, 0.0])
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    is_clean = torch.tensor([False, False, False, False, False, True])
    chosen = [lowest_of_each_class(losses, labels, is_clean, count).tolist() for count in (0, 1, 9)]
    assert chosen == [
        [False, False, False, False, False, True],
        [False, True, False, False, True, True],
        [True] * 6,
    ]


def test_a_pool_that_is_smaller_than_the_number_of_classes_is_refused() -> None:
    whole = spec(BADNETS, {"name": "asd", "labeled_ratio": 0.005}, {"name": "dbd", "labeled_ratio": 0.005})
    problems = find_problems(ExperimentSpec.model_validate(whole), BUILT_IN["digits"])
    assert [problem.field for problem in problems] == [
        "defenses.0.labeled_ratio",
        "defenses.1.labeled_ratio",
    ]
    assert "0.00696" in problems[0].allowed


@pytest.mark.long  # 35 epochs, of which each is a pass with three times the images and three measurements
def test_the_backdoor_is_not_learned() -> None:
    short = {"growth_epochs": 20, "growth_interval": 3, "loss_epochs": 10, "meta_epochs": 5}
    done = defended(BADNETS, {"name": "asd", **short}, epochs=5)
    assert number(done, "undefended", "attack_success_rate") > 0.95
    assert number(done, "asd", "attack_success_rate") < 0.1
    assert number(done, "asd", "clean_accuracy") > 0.9
    assert number(done, "asd", "isolation_recall") > 0.8
