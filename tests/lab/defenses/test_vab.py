"""V&B: which samples are suspicious, how images are mixed, and what is taken off the targets."""

import math

import pytest
import torch

from tests.lab.defenses.cases import BADNETS, defended, number
from worker.lab.defenses.vab import (
    attention_of,
    find_suspicious,
    mix_by_attention,
    soft_cross_entropy,
)


def test_samples_in_the_lower_part_of_the_range_are_suspicious() -> None:
    entropies = torch.tensor([5.0, 1.5, 2.0, 3.0, 4.0, 1.0])  # thresholds at 1 + 0.2 * 4 and 1 + 0.5 * 4
    assert find_suspicious(entropies, 0.2).tolist() == [False, True, False, False, False, True]
    assert find_suspicious(entropies, 0.5).tolist() == [False, True, True, True, False, True]


def test_two_samples_are_left_on_either_side() -> None:
    assert find_suspicious(torch.tensor([0.0, 7.0, 8.0, 9.0]), 0.2).tolist() == [True, True, False, False]
    assert find_suspicious(torch.ones(5), 0.2).tolist() == [True, True, True, False, False]


def test_attention_is_the_scaled_sum_of_squares_at_the_image_s_size() -> None:
    feature_map = torch.tensor([[[[1.0, 0.0]], [[-1.0, 1.0]]]])  # two channels, sums of squares 2 and 1
    attention = attention_of(feature_map, torch.zeros(1, 3, 2, 4))
    assert attention.tolist() == [[[[1, 1, 0, 0], [1, 1, 0, 0]]]]


def test_salient_pixels_are_mixed_and_the_target_with_them() -> None:
    x = torch.tensor([[[[10.0, 20.0]]], [[[30.0, 40.0]]]])
    attention = torch.tensor([[[[1.0, 0.0]]], [[[0.5, 0.5]]]])
    targets = torch.eye(2)
    mixed, moved = mix_by_attention(x, targets, attention, torch.tensor([1, 0]), threshold=0.1)
    # First image: w = 1 (all of its attention is salient), v = 0.5 (half of the other's lies there).
    assert mixed[0].flatten().tolist() == pytest.approx([10 * 2 / 3 + 30 / 3, 20])
    assert moved[0].tolist() == pytest.approx([2 / 3, 1 / 3])
    # Second: both pixels are salient, w = 1, v = 1.
    assert mixed[1].flatten().tolist() == pytest.approx([20, 30])
    assert moved[1].tolist() == pytest.approx([1 / 2, 1 / 2])


def test_a_target_of_zero_adds_nothing() -> None:
    targets = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert soft_cross_entropy(torch.zeros(2, 2), targets).item() == pytest.approx(math.log(2) / 2)


@pytest.mark.long  # 47 epochs of two models
def test_the_backdoor_is_not_learned_once_the_first_model_has_learned_it() -> None:
    lengths = {"warmup_epochs": 15, "mixed_epochs": 20, "suppressed_epochs": 10}
    done = defended(BADNETS, {"name": "vab", **lengths}, epochs=5)
    assert number(done, "undefended", "attack_success_rate") > 0.95
    assert number(done, "vab", "attack_success_rate") < 0.1
    assert number(done, "vab", "clean_accuracy") > 0.6
