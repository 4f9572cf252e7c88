"""The removal test of `abl_plus`, on hand-computed predictions."""

import pytest
import torch

from worker.lab.defenses.removal import Removal, judge_removal, split_class


def test_recognition_is_the_mean_over_models() -> None:
    flagged = [torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 2])]
    held_out = [torch.tensor([0, 0]), torch.tensor([0, 2])]
    removal = judge_removal(flagged, held_out, 0, 0.9)
    assert removal == Removal(pytest.approx(3 / 8), pytest.approx(3 / 4), 0.9)


@pytest.mark.parametrize(
    ("known", "known_held_out", "dominance", "proved"),
    [
        (0.0, 1.0, 1.0, True),
        (0.49, 1.0, 0.7, True),
        (0.5, 1.0, 1.0, False),
        (1.0, 1.0, 1.0, False),
        (0.4, 0.7, 1.0, False),
        (0.0, 0.0, 1.0, False),
        (0.0, 1.0, 0.5, False),  # the others dominate: these may be the clean ones
    ],
)
def test_poison_is_recognized_less_than_half_as_often_and_dominates(
    known: float, known_held_out: float, dominance: float, proved: bool
) -> None:
    assert Removal(known, known_held_out, dominance).proves_poison is proved


def test_flagged_held_out_and_doubtful_members_are_not_trained_on() -> None:
    labels = torch.arange(200) % 2
    labels[1] = 2
    flagged = torch.zeros(200, dtype=torch.bool)
    flagged[::4] = True  # half of class 0
    suspicion = torch.linspace(0, 1, 200)
    split = split_class(flagged, suspicion, labels, 0, seed=0)
    assert split is not None
    assert int(split.held_out.sum()) == 13  # a quarter of 50
    assert not (split.held_out & (flagged | (labels != 0))).any()
    assert split.kept[labels != 0].all()
    kept = split.kept & (labels == 0)
    assert int(kept.sum()) == 19  # of the 37 that are left, the more suspicious half is not kept
    left_out = (labels == 0) & ~flagged & ~split.held_out & ~kept
    assert suspicion[kept].max() < suspicion[left_out].min()
    again, other = (split_class(flagged, suspicion, labels, 0, seed=seed) for seed in (0, 1))
    assert again is not None
    assert other is not None
    assert torch.equal(again.held_out, split.held_out)
    assert not torch.equal(other.held_out, split.held_out)


def test_too_few_members_or_classes_to_say_anything() -> None:
    labels, suspicion = torch.cat([torch.zeros(40), torch.tensor([1.0, 2.0])]).long(), torch.zeros(42)
    flagged = torch.arange(42) < 24
    assert split_class(flagged, suspicion, labels, 0, seed=0) is None  # a quarter of 16
    assert split_class(flagged & False, suspicion, labels, 0, seed=0) is None
    few = torch.arange(42) < 1
    assert split_class(few, suspicion, labels, 0, seed=0) is not None
    assert split_class(few, suspicion, labels.clamp(max=1), 0, seed=0) is None
