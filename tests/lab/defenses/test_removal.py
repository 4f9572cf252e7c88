"""The removal test of `abl_plus`, on hand-computed predictions."""

from dataclasses import replace

import pytest
import torch

from worker.lab.defenses.removal import (
    ClassParts,
    Removal,
    effective_number,
    find_poisoned,
    judge_removals,
    split_class,
)

POISON = Removal(
    label=3,
    known=0.0,
    known_held_out=1.0,
    foreign=0.5,
    variety=6.0,
    dominance=0.98,
    claiming=0.0,
    held_out=30,
    is_bimodal=True,
)
CLEAN_SIDE = replace(POISON, foreign=0.02, variety=1.0, dominance=0.02)
KNOWN = replace(POISON, known=0.9)


def mask(*rows: int) -> torch.Tensor:
    chosen = torch.zeros(10, dtype=torch.bool)
    chosen[list(rows)] = True
    return chosen


def test_the_flagged_and_the_held_out_are_compared_and_what_is_surely_foreign_counted() -> None:
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 2, 2])
    predicted = torch.tensor([1, 2, 1, 0, 0, 1, 1, 1, 2, 2])
    chances = torch.tensor([0.9, 0.9, 0.3, 0.9, 0.9, 0.9, 0.8, 0.8, 0.95, 0.95])
    dominance = torch.tensor([0.9, 0.8, 0.7, 0.75, 0.1, 0.2, 0.0, 0.0, 0.0, 0.0])
    split = ClassParts(0, mask(0, 1, 2, 3, 4, 5), mask(0, 1, 2, 3), mask(4, 5), mask(), dominance, True)
    (removal,) = judge_removals([split], labels, predicted, chances, dominance)
    # Row 0 is given class 1 more surely than its members are, row 1 class 2 less surely, and row 2 is not sure at all.
    assert removal == Removal(
        label=0,
        known=pytest.approx(1 / 4),
        known_held_out=pytest.approx(1 / 2),
        foreign=pytest.approx(1 / 4),
        variety=1.0,
        dominance=1.0,
        claiming=pytest.approx(1 / 4),  # class 1 claims row 0: one class, a quarter of the flagged
        held_out=2,
        is_bimodal=True,
    )


@pytest.mark.parametrize(("chance", "claiming"), [(0.84, 0.0), (0.86, 2.0)])
def test_a_class_claims_what_it_is_given_more_surely_than_half_of_its_members(
    chance: float, claiming: float
) -> None:
    """Both of two classes claim all of a third."""
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    predicted = torch.tensor([1, 1, 2, 2, 1, 1, 1, 2, 2, 2])
    chances = torch.tensor([*[chance] * 4, 0.8, 0.85, 0.9, 0.8, 0.85, 0.9])
    parts = ClassParts(0, labels == 0, labels == 0, mask(), mask(), chances, False)
    (removal,) = judge_removals([parts], labels, predicted, chances, chances)
    assert removal.foreign == 1
    assert removal.claiming == pytest.approx(claiming)


def test_members_of_another_divided_class_are_genuine_only_if_held_out() -> None:
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    predicted = torch.ones(10, dtype=torch.int64)
    chances = torch.tensor([0.7, 0.7, 0.7, 0.7, 0.7, 0.9, 0.9, 0.9, 0.9, 0.6])
    first = ClassParts(0, labels == 0, mask(0, 1), mask(2), mask(3), chances, True)
    second = ClassParts(1, labels == 1, mask(5, 6, 7), mask(9), mask(8), chances, True)
    removals = judge_removals([first, second], labels, predicted, chances, chances)
    assert removals[0].foreign == 1.0  # surer than row 9, the only genuine member of class 1
    # The tenth percentile of all of class 1 is 0.72.
    assert judge_removals([first], labels, predicted, chances, chances)[0].foreign == 0.0


@pytest.mark.parametrize(
    ("known", "known_held_out", "held_out", "unexplained"),
    [
        (0.0, 1.0, 30, True),
        (0.49, 1.0, 30, True),
        (0.5, 1.0, 30, False),
        (0.4, 0.7, 30, False),
        (0.0, 0.0, 30, False),
        (0.0, 1.0, 4, False),
        (0.0, 1.0, 5, True),
    ],
)
def test_what_is_recognized_less_than_half_as_often_is_unexplained(
    known: float, known_held_out: float, held_out: int, unexplained: bool
) -> None:
    removal = replace(POISON, known=known, known_held_out=known_held_out, held_out=held_out)
    assert removal.is_unexplained is unexplained
    assert find_poisoned([removal], 10) == [removal] * unexplained


def test_the_flagged_are_foreign_if_many_classes_claim_them() -> None:
    assert POISON.is_foreign(10)
    assert not replace(POISON, foreign=0.09).is_foreign(10)
    # A clean class with a second kind of members that looks like one other class.
    assert not replace(POISON, variety=1.0).is_foreign(10)
    assert replace(POISON, variety=1.6).is_foreign(3)  # of two other classes, both
    assert not replace(POISON, variety=1.4).is_foreign(3)


def test_one_side_of_a_class_is_poison() -> None:
    assert find_poisoned([POISON, CLEAN_SIDE], 10) == [POISON]
    assert find_poisoned([CLEAN_SIDE, POISON], 10) == [POISON]  # most of the class may be poison
    assert find_poisoned([KNOWN, KNOWN], 10) == []
    assert find_poisoned([CLEAN_SIDE, CLEAN_SIDE], 10) == []
    other = replace(POISON, label=5)
    assert find_poisoned([POISON, other, CLEAN_SIDE, replace(CLEAN_SIDE, label=5)], 10) == [POISON, other]


def test_a_side_that_dominates_is_poison_whether_or_not_other_classes_claim_it() -> None:
    perturbed = replace(POISON, foreign=0.0, variety=0.0)
    assert find_poisoned([CLEAN_SIDE, perturbed], 10) == [perturbed]
    assert find_poisoned([CLEAN_SIDE, replace(perturbed, dominance=0.84)], 10) == []
    # Clean members may resemble other classes more than the poison does.
    claimed = replace(POISON, foreign=0.6, dominance=0.02)
    assert find_poisoned([claimed, perturbed], 10) == [perturbed]


def test_a_side_that_dominates_is_poison_only_if_unseen_members_of_it_are_recognized() -> None:
    """As for SIG on dogs of CIFAR-10, and for clean airplanes beside them: half of these dominate the other half."""
    planes = replace(POISON, known=0.12, known_held_out=0.53, foreign=0.59, variety=2.6, dominance=0.98)
    other_planes = replace(planes, known=0.06, known_held_out=0.71, foreign=0.48, variety=6.4, dominance=0.02)
    stripes = replace(planes, label=5, known=0.05, known_held_out=0.31, foreign=0.69, dominance=0.91)
    dogs = replace(stripes, known=0.02, known_held_out=0.96, foreign=0.7, dominance=0.09)
    assert find_poisoned([planes, dogs, other_planes, stripes], 10) == [stripes]
    assert find_poisoned([replace(planes, foreign=0.9, variety=3.5), other_planes], 10) == []


def test_of_two_unexplained_sides_the_one_that_leads_in_dominance_and_claims_is_poison() -> None:
    # 0.41 of the flagged are surely of 4.6 other classes: so much of them is not of the most frequent one.
    warped = replace(POISON, foreign=0.41, variety=4.6, dominance=0.32)
    assert warped.claimed == pytest.approx(0.41 * 3.6 / 4.6)
    assert replace(warped, foreign=0.0, variety=0.0).claimed == 0
    # A lead in claims may outweigh one in dominance, and the other way round.
    dominant = replace(warped, dominance=0.68)
    for rest in (replace(dominant, foreign=0.1), replace(dominant, variety=1.2)):
        assert find_poisoned([rest, warped], 10) == find_poisoned([warped, rest], 10) == [warped]
    perturbed = replace(warped, dominance=0.84, foreign=0.35)
    rest = replace(warped, dominance=0.16, foreign=0.45)
    assert find_poisoned([rest, perturbed], 10) == find_poisoned([perturbed, rest], 10) == [perturbed]
    # The stronger side is not foreign, and the other is not asked.
    assert find_poisoned([replace(perturbed, foreign=0.09), rest], 10) == []


def test_the_side_that_more_classes_claim_is_poison_even_if_it_dominates_less() -> None:
    """As for WaNet on cats of CIFAR-10, whose warp other images hide, and for clean airplanes beside BPP's cats."""
    warped = replace(POISON, foreign=0.74, variety=7.1, dominance=0.36, claiming=1.95, is_bimodal=False)
    cats = replace(warped, foreign=0.69, variety=3.9, dominance=0.64, claiming=0.68)
    assert find_poisoned([warped, cats], 10) == find_poisoned([cats, warped], 10) == [warped]
    more = replace(cats, claiming=1.1, dominance=0.9)  # much of the poison is on the other side
    assert find_poisoned([warped, more], 10) == [warped]
    sky = replace(POISON, foreign=0.63, variety=2.5, dominance=0.73, claiming=0.42, is_bimodal=False)
    other_planes = replace(sky, foreign=0.61, variety=5.5, dominance=0.27, claiming=0.58)
    assert find_poisoned([sky, other_planes], 10) == []
    assert (
        find_poisoned([replace(warped, claiming=0.99), cats], 10) == []
    )  # neither claimed enough nor bimodal


def test_where_one_side_is_explained_the_other_is_poison_only_if_it_dominates() -> None:
    """As for reflections, part of which was divided from the rest, which still teaches them."""
    reflections = replace(KNOWN, dominance=0.77, foreign=0.03, variety=2.0)
    rest = replace(POISON, foreign=0.18, variety=7.6, dominance=0.23)
    assert rest.is_foreign(10)
    assert find_poisoned([reflections, rest], 10) == []
    # All of the poison and some clean members, which the other clean members explain.
    mixed = replace(rest, dominance=1.0)
    assert find_poisoned([replace(reflections, dominance=0.0), mixed], 10) == [mixed]


def test_classes_of_two_kinds_confirm_each_other() -> None:
    """In an all-to-all attack each class's poison comes from one class, and is not dominant."""
    alike = [replace(POISON, label=label, foreign=0.05, variety=1.0, dominance=0.4) for label in range(10)]
    clean = [replace(removal, known=0.1, dominance=0.6) for removal in alike]
    known = [replace(KNOWN, label=label) for label in range(10)]
    assert find_poisoned(alike[:5] + clean[:5], 10) == alike[:5]  # smaller sides come first
    assert find_poisoned(alike[:6] + clean[:5], 10) == alike[:6]
    assert find_poisoned(alike[:4] + clean[:4], 10) == []
    assert find_poisoned(alike[:2] + clean[:2], 4) == []  # half of four classes is too few
    divided = [replace(removal, is_bimodal=False) for removal in alike[:5] + clean[:5]]
    assert find_poisoned(divided, 10) == []  # three classes are divided in any case
    # One side that its class does not explain, in many classes, are hard images: those with triggers of other images.
    assert find_poisoned(alike + known, 10) == []


def test_the_model_of_the_test_sees_neither_the_flagged_nor_what_is_near_or_held_out() -> None:
    labels = torch.arange(200) % 2
    labels[1] = 2
    flagged = torch.zeros(200, dtype=torch.bool)
    flagged[::4] = True  # half of class 0
    doubt = torch.linspace(0, 1, 200)
    split = split_class(0, flagged, doubt, labels, seed=0, is_bimodal=True)
    assert torch.equal(split.members, labels == 0)
    assert int(split.held_out.sum()) == 13  # a quarter of 50
    assert int(split.near.sum()) == 25
    assert not (split.flagged & (split.held_out | split.near)).any()
    assert torch.equal(
        split.kept, split.members & ~split.flagged & ~split.held_out & (doubt < doubt[split.near].min())
    )
    again, other = (split_class(0, flagged, doubt, labels, seed=seed, is_bimodal=True) for seed in (0, 1))
    assert torch.equal(again.held_out, split.held_out)
    assert not torch.equal(other.held_out, split.held_out)


def test_the_effective_number_is_that_of_equally_frequent_values() -> None:
    assert effective_number(torch.tensor([1, 1, 2, 2, 5, 5])) == pytest.approx(3)
    assert effective_number(torch.tensor([4])) == pytest.approx(1)
    assert 1 < effective_number(torch.tensor([1, 1, 1, 2])) < 2
    assert effective_number(torch.tensor([], dtype=torch.int64)) == 0
