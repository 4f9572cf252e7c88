"""Confusion training: its parts against values computed by hand, and what it finds on digits."""

import math

import pytest
import torch

from app.specs.defenses.confusion import ConfusionTraining
from tests.lab.defenses.cases import BADNETS, defended, number
from worker.lab.defenses.confusion_training import (
    class_frequencies,
    keep_samples,
    likelihood_ratio,
    wrong_labels,
)

DOUBLE = torch.float64


def test_labels_are_never_right_and_take_turns() -> None:
    labels = torch.tensor([0, 2])
    steps = [wrong_labels(labels, step, 3).tolist() for step in range(4)]
    assert steps == [[1, 0], [2, 1], [1, 0], [2, 1]]
    assert wrong_labels(torch.tensor([0, 1]), 5, 2).tolist() == [1, 0]


def test_rare_classes_weigh_more() -> None:
    found = class_frequencies(torch.tensor([0, 0, 0, 1]), 3).tolist()
    assert found == pytest.approx([0.751**0.5, 0.251**0.5, 0.001**0.5])


def test_the_lowest_losses_are_kept_and_some_of_every_class() -> None:
    losses, labels = torch.arange(20.0), torch.arange(20) // 10
    assert keep_samples(losses, labels, 0.2, 5).tolist() == [0, 1, 2, 3, 10, 11]
    assert keep_samples(losses, labels, 0.2, 50).tolist() == [0, 1, 2, 3]
    assert keep_samples(losses, labels, 0.01, 50).tolist() == [0, 1]


def test_two_clusters_are_compared_with_the_one_of_the_others() -> None:
    others = torch.tensor([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [-1.0, 0.0]], dtype=DOUBLE)
    points = torch.cat([others, others + 4])
    isolated = torch.arange(8) >= 4
    # Both have the variance 2/3, and 0.001 more; the distances of the second four from 0 are (4, 4) and up to 1 more.
    variance = 2 / 3 + 0.001
    gain = (4 * 32 + 4 * 1 - 4 * 1) / (2 * variance) / 8
    assert likelihood_ratio(points, isolated) == pytest.approx(math.exp(gain), rel=1e-6)
    assert likelihood_ratio(points, torch.arange(8) >= 7) == 1.0


def test_lengths_follow_the_round() -> None:
    given = ConfusionTraining(epochs=100)
    assert [given.epochs_of(n) for n in range(1, 7)] == [100, 100, 40, 40, 40, 40]
    kinds = [kind for kind, *_ in given.stages()]
    assert kinds[:2] == ["pretraining_1", "confusion_1"]
    assert kinds[-3:] == ["confusion_6", "detection", "retrain"]


@pytest.mark.long  # five seconds; tests/lab/defenses/test_every_defense.py runs the method, too
def test_badnets_is_found_on_digits() -> None:
    short = {"epochs": 6, "confusion_steps": 40, "learning_rate": 0.03, "last_confusion_learning_rate": 0.003}
    done = defended(BADNETS, {"name": "confusion_training", "then": "nothing", **short})
    assert number(done, "confusion_training", "isolation_auroc") > 0.9
    assert number(done, "confusion_training", "isolation_recall") > 0.8
