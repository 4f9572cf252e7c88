"""ABL with a second opinion: what it believes of a poisoned and of a clean set, and its parts by hand."""

import json

import pytest
import torch

from app.specs.defenses.abl_plus import AblPlus
from tests.lab.defenses.cases import BADNETS, NOTHING, defended, number
from worker.lab.defenses.abl_plus import Signs, _core, _cut, _evidence, _try, classes_to_sort

SPEC = {"name": "abl_plus", "scout_epochs": 12}
BLEND = {"name": "blend", "target_class": 3}


@pytest.mark.parametrize(("attack", "target"), [(BADNETS, 0), (BLEND, 3)])
def test_finds_and_removes_the_poison(attack: dict[str, object], target: int) -> None:
    recorder = defended(attack, SPEC)
    assert number(recorder, "undefended", "attack_success_rate") >= 0.95
    assert number(recorder, "abl_plus", "attack_success_rate") <= 0.03
    assert number(recorder, "abl_plus", "clean_accuracy") >= 0.95
    assert number(recorder, "abl_plus", "isolation_auroc") >= 0.97
    assert number(recorder, "abl_plus", "isolation_recall") >= 0.95
    belief = json.loads(recorder.files["seed-0/abl_plus/belief.json"])
    assert belief["believes"]["target_class"] == belief["truth"]["target_class"] == target
    assert belief["believes"]["poisoning_rate"] == pytest.approx(belief["truth"]["poisoning_rate"], abs=0.01)


def test_leaves_clean_data_alone() -> None:
    recorder = defended(NOTHING, SPEC)
    loss = number(recorder, "clean", "clean_accuracy") - number(recorder, "abl_plus", "clean_accuracy")
    assert loss <= 0.02  # seven of 360 images: two models trained in another order differ by as much
    belief = json.loads(recorder.files["seed-0/abl_plus/belief.json"])
    assert belief["believes"] == {"poisoned": False, "target_class": None, "poisoning_rate": 0.0}
    assert belief["truth"] == {"poisoned": False, "target_class": None, "poisoning_rate": 0.0}
    assert any("no poison was found" in warning for warning in recorder.warnings)


def test_cut_separates_two_heaps() -> None:
    assert _cut(torch.tensor([0.1, 0.9, 0.2, 0.8, 0.15])) == pytest.approx(0.5)
    assert _cut(torch.tensor([0.4])) == pytest.approx(0.4)


def test_classes_to_sort_are_the_majorities_of_the_heads() -> None:
    labels = torch.arange(100) % 4
    speed = (labels == 2).double()
    dominance = (labels == 1).double()
    assert classes_to_sort([speed, dominance], labels) == [1, 2]
    assert classes_to_sort([speed, speed], labels) == [2]


def test_core_listens_only_to_signs_that_agree() -> None:
    members, strangeness = torch.arange(10), torch.linspace(0, 1, 10)
    against = Signs(1 - strangeness, 1 - strangeness)
    assert _core(members, strangeness, against, 0.3).tolist() == [0, 1, 2]
    # Both signs say of member 0, the least strange, that it is the most suspicious, and agree on the others.
    doubted = strangeness.clone()
    doubted[0] = 2
    assert 0 not in _core(members, strangeness, Signs(doubted, doubted), 0.3).tolist()


def trial(strange: int, trusted_known: bool, sign: torch.Tensor, heads: bool) -> bool:
    """Whether a class of 40 among 1,500 is accused; its first 10 members are trusted, ``strange`` others are not."""
    labels = torch.arange(1500) // 40
    strangeness, trusted = torch.zeros(1500), torch.zeros(1500, dtype=torch.bool)
    trusted[:10] = True
    strangeness[:10] = 0.0 if trusted_known else 1.0
    strangeness[10 : 10 + strange] = 1.0
    values = torch.zeros(1500, dtype=torch.double)
    values[10:40] = sign
    if not heads:
        values[40:160] += 5  # other classes stand before this one in both rankings
    return _try(AblPlus(), 0, labels, strangeness, trusted, Signs(values, values)).guilty


def test_accuses_by_agreement_by_number_or_by_both_heads() -> None:
    strange_ones_are_fast = torch.linspace(3, 2, 30)
    strange_ones_are_slow = torch.linspace(2, 3, 30)
    assert trial(8, True, strange_ones_are_fast, heads=False)
    # A clean class: its strange members are the hard ones.
    assert not trial(8, True, strange_ones_are_slow, heads=False)
    assert trial(25, True, strange_ones_are_slow, heads=False)  # more than half of it does not belong there
    # A model that does not know the class is not believed, and half of both heads are not enough without it.
    assert not trial(25, False, strange_ones_are_slow, heads=False)
    assert not trial(25, False, strange_ones_are_fast, heads=False)
    assert trial(25, False, strange_ones_are_slow, heads=True)


def test_evidence_of_a_model_that_cannot_tell_is_left_out() -> None:
    labels, trusted = torch.zeros(20, dtype=torch.int64), torch.zeros(20, dtype=torch.bool)
    trusted[:10] = True
    known, unknown = torch.zeros(20), torch.ones(20)
    sign = torch.linspace(0, 1, 20, dtype=torch.double)
    believed = _try(AblPlus(), 0, labels, known, trusted, Signs(sign, sign))
    ignored = _try(AblPlus(), 0, labels, unknown, trusted, Signs(sign, sign))
    assert believed.competent
    assert not ignored.competent
    assert torch.equal(_evidence(ignored, unknown, sign, sign), sign)
    against = 1 - sign
    assert torch.equal(_evidence(believed, sign, against, against), sign)
