"""ABL with a second opinion: what it believes of a poisoned and of a clean set, and its parts by hand."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from app.specs.defenses.abl_plus import MARGIN, AblPlus
from tests.lab.defenses.cases import BADNETS, NOTHING, defended, number
from worker.lab.defenses import abl_plus
from worker.lab.defenses.abl_plus import clearest, kept_off
from worker.lab.defenses.base import TrainingDefense
from worker.lab.defenses.signs import Signs, best_cut, separability
from worker.lab.defenses.sorting import classes_to_sort, core_of, evidence_of, excess, trial_of
from worker.lab.stages import Outcome, StageRun

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


def test_unlearns_what_it_found_if_it_missed_so_much_that_the_backdoor_is_learned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(abl_plus, "best_cut", lambda values: float(values.double().quantile(0.8)))
    # A proof of its own, so that no verdict is taken from the cache.
    recorder = defended(BADNETS, {**SPEC, "proof": 1.09})
    assert number(recorder, "abl_plus", "isolation_recall") <= 0.5
    assert any("the accused label is given to" in line for line in recorder.lines)
    assert not any(
        "trained once more" in line for line in recorder.lines
    )  # not to know missed poison is no fault
    assert ("abl_plus", 0, "isolated_accuracy") in recorder.points
    assert number(recorder, "abl_plus", "attack_success_rate") <= 0.2
    assert number(recorder, "abl_plus", "clean_accuracy") >= 0.93


def test_a_training_that_went_badly_is_done_once_more_from_other_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = abl_plus.train

    def badly_at_first(lab: TrainingDefense, stage: StageRun, verdict: Outcome, purpose: str) -> Outcome:
        slow = replace(lab, recipe=replace(lab.recipe, learning_rate=1e-4))
        return train(slow if purpose == "victim" else lab, stage, verdict, purpose)

    monkeypatch.setattr(abl_plus, "train", badly_at_first)
    recorder = defended(BADNETS, {**SPEC, "proof": 1.07})
    assert any("trained once more, from other weights" in line for line in recorder.lines)
    assert number(recorder, "abl_plus", "clean_accuracy") >= 0.95
    assert number(recorder, "abl_plus", "attack_success_rate") <= 0.03


def test_leaves_clean_data_alone() -> None:
    recorder = defended(NOTHING, SPEC)
    loss = number(recorder, "clean", "clean_accuracy") - number(recorder, "abl_plus", "clean_accuracy")
    assert loss <= 0.02  # seven of 360 images: two models trained in another order differ by as much
    belief = json.loads(recorder.files["seed-0/abl_plus/belief.json"])
    assert belief["believes"] == {"poisoned": False, "target_class": None, "poisoning_rate": 0.0}
    assert belief["truth"] == {"poisoned": False, "target_class": None, "poisoning_rate": 0.0}
    assert any("no poison was found" in warning for warning in recorder.warnings)


def test_the_loss_pushes_the_log_odds_of_the_isolated_below_the_margin_and_no_further() -> None:
    chances = torch.tensor([0.9, 0.5, 0.9, 0.5, 0.01], requires_grad=True)
    losses = -torch.log(chances)
    isolated = torch.tensor([False, False, True, True, True])
    loss = kept_off(losses, isolated)
    pushed = [MARGIN + math.log(9), MARGIN, 0.0]  # at odds of 1 to 99 the last is past the margin of 4
    assert loss.item() == pytest.approx((-math.log(0.9) - math.log(0.5) + sum(pushed)) / 5, abs=1e-5)
    loss.backward()
    # d log-odds / dp = 1 / (p (1 - p)), over a batch of five
    expected = torch.tensor([-1 / 0.9, -1 / 0.5, 1 / 0.09, 1 / 0.25, 0.0]) / 5
    assert chances.grad is not None
    assert torch.allclose(chances.grad, expected, rtol=1e-4)
    certain = torch.zeros(1, requires_grad=True)
    kept_off(certain, torch.ones(1, dtype=torch.bool)).backward()
    assert certain.grad is not None
    assert certain.grad.isfinite().all()


def test_missed_poison_is_outvoted(monkeypatch: pytest.MonkeyPatch) -> None:
    def half_blind(*given: Any) -> torch.Tensor:
        evidence = evidence_of(*given)
        evidence[::5] = 0.0  # a fifth of the class is not even looked at
        return evidence

    monkeypatch.setattr(abl_plus, "evidence_of", half_blind)
    recorder = defended(BADNETS, {**SPEC, "proof": 1.08, "unlearning_epochs": 0})
    assert number(recorder, "abl_plus", "isolation_recall") == pytest.approx(0.8, abs=0.06)
    assert number(recorder, "abl_plus", "attack_success_rate") <= 0.1
    assert number(recorder, "abl_plus", "clean_accuracy") >= 0.95


def test_cut_separates_two_heaps() -> None:
    assert best_cut(torch.tensor([0.1, 0.9, 0.2, 0.8, 0.15])) == pytest.approx(0.5)
    assert best_cut(torch.tensor([0.4])) == pytest.approx(0.4)


def test_a_splitting_model_that_learned_nothing_is_not_asked() -> None:
    drawn = torch.Generator().manual_seed(0)
    poison = torch.arange(200) < 100
    sharp = torch.where(poison, 0.9, 0.1) + 0.05 * torch.randn(200, generator=drawn)
    murky = torch.where(poison, 0.3, 0.2) + 0.15 * torch.rand(200, generator=drawn)
    for rounds in ([sharp, murky], [murky, sharp]):
        assert clearest([Outcome({"evidence": evidence}) for evidence in rounds]) is sharp


def test_classes_to_sort_are_the_majorities_of_the_heads() -> None:
    labels = torch.arange(100) % 4
    speed = (labels == 2).double()
    dominance = (labels == 1).double()
    assert classes_to_sort(Signs(speed, dominance), labels) == [1, 2]
    assert classes_to_sort(Signs(speed, speed), labels) == [2]
    two = torch.arange(98) % 2
    assert classes_to_sort(Signs((two == 1).double(), (two == 0).double()), two) == [1]


def test_a_class_in_two_heaps_is_sorted_whatever_the_heads_say() -> None:
    labels = torch.arange(400) % 4
    values = torch.zeros(400, dtype=torch.double)
    values[labels == 2] = 1.0  # names class 2
    members = (labels == 0).nonzero().flatten()
    values[members] = torch.linspace(0.4, 0.6, 100, dtype=torch.double)
    assert classes_to_sort(Signs(values, values), labels) == [2]
    values[members[:40]] -= 0.4
    assert classes_to_sort(Signs(values, values), labels) == [0, 2]


def test_separability_is_that_of_known_distributions() -> None:
    uniform = torch.linspace(0, 1, 1001, dtype=torch.double)
    assert separability(uniform) == pytest.approx(0.75, abs=1e-3)
    assert separability(torch.special.ndtri(uniform[1:-1])) == pytest.approx(2 / torch.pi, abs=0.01)
    assert separability(torch.tensor([0.0, 0.0, 1.0])) == pytest.approx(1)
    assert separability(torch.ones(5)) == 0.0
    few = torch.arange(100) < 49
    signs = Signs((torch.arange(100) % 2).double(), (torch.arange(100) % 2).double())
    assert signs.heaps(few) == 0.0
    assert signs.heaps(~few) == pytest.approx(1)


def test_core_listens_only_to_signs_that_agree() -> None:
    members, strangeness = torch.arange(10), torch.linspace(0, 1, 10)
    against = Signs(1 - strangeness, 1 - strangeness)
    assert core_of(members, strangeness, against, 0.3).tolist() == [0, 1, 2]
    # Both signs say of member 0, the least strange, that it is the most suspicious, and agree on the others.
    doubted = strangeness.clone()
    doubted[0] = 2
    assert 0 not in core_of(members, strangeness, Signs(doubted, doubted), 0.3).tolist()


def trial(strange: int, trusted_known: bool, sign: torch.Tensor, heads: bool) -> bool:
    """Whether a class of 40 among 1,500 is accused; its first 10 members are trusted, ``strange`` others are not.

    Of the trusted two are held out, and the model knows these two or not; the others it was taught.
    """
    labels = torch.arange(1500) // 40
    strangeness, trusted = torch.zeros(1500), torch.zeros(1500, dtype=torch.bool)
    trusted[:10] = True
    held_out = torch.zeros_like(trusted)
    held_out[[0, 7]] = True
    strangeness[held_out] = 0.0 if trusted_known else 1.0
    strangeness[10 : 10 + strange] = 1.0
    values = torch.zeros(1500, dtype=torch.double)
    values[10:40] = sign
    if not heads:
        values[40:160] += 5  # other classes stand before this one in both rankings
    return trial_of(
        AblPlus(), 0, labels, Signs(values, values), sorted_(strangeness, trusted, held_out)
    ).guilty


def sorted_(
    strangeness: torch.Tensor, trusted: torch.Tensor, held_out: torch.Tensor, kinds: int = 9
) -> Outcome:
    """``kinds``: how many other classes the members resemble."""
    elsewhere = torch.arange(len(strangeness)) % kinds + 1
    return Outcome(
        {"strangeness": strangeness, "elsewhere": elsewhere, "trusted": trusted, "held_out": held_out}
    )


def test_accuses_by_agreement_by_number_or_by_both_heads() -> None:
    strange_ones_are_fast = torch.linspace(3, 2, 30)
    strange_ones_are_slow = torch.linspace(2, 3, 30)
    assert trial(8, True, strange_ones_are_fast, heads=False)
    # A clean class: its strange members are the hard ones.
    assert not trial(8, True, strange_ones_are_slow, heads=False)
    assert not trial(25, True, strange_ones_are_slow, heads=False)
    alike = torch.zeros(30)
    assert not trial(17, True, alike, heads=False)
    assert trial(19, True, alike, heads=False)  # nearly half of it does not belong there
    # A model that does not know the class is not believed, and half of both heads are not enough without it.
    assert not trial(25, False, strange_ones_are_slow, heads=False)
    assert not trial(25, False, strange_ones_are_fast, heads=False)
    assert trial(25, False, strange_ones_are_slow, heads=True)


def test_a_model_that_cannot_tell_is_not_believed() -> None:
    labels, trusted = torch.zeros(20, dtype=torch.int64), torch.zeros(20, dtype=torch.bool)
    trusted[:10] = True
    known, unknown = torch.zeros(20), torch.ones(20)
    known[10:] = 1.0
    sign = torch.linspace(0, 1, 20, dtype=torch.double)
    believed = trial_of(AblPlus(), 0, labels, Signs(sign, sign), sorted_(known, trusted, trusted))
    ignored = trial_of(AblPlus(), 0, labels, Signs(sign, sign), sorted_(unknown, trusted, trusted))
    assert believed.sorted_out
    assert not ignored.sorted_out


def test_a_model_that_took_the_poison_for_the_class_is_not_believed() -> None:
    """Ten trusted members, ten strange ones, five between: those that stand above the others are the poison."""
    labels = torch.zeros(25, dtype=torch.int64)
    trusted, strangeness = torch.zeros(25, dtype=torch.bool), torch.zeros(25)
    trusted[:10], strangeness[15:] = True, 1.0
    between = torch.full((5,), 0.7)
    above, below = torch.linspace(0.8, 1, 10), torch.linspace(0, 0.2, 10)
    for sign, believed in (
        (torch.cat([below, between, above]), True),
        # As common among the strange as above, and slower than the few between: as in a poisoned class on digits.
        (torch.cat([below, between, torch.full((10,), 0.6)]), True),
        (torch.cat([above, between, below]), False),
    ):
        found = trial_of(
            AblPlus(), 0, labels, Signs(sign.double(), sign.double()), sorted_(strangeness, trusted, trusted)
        )
        assert found.competent
        assert found.believed is believed


def test_evidence_takes_a_sign_as_far_as_it_agrees() -> None:
    sign = torch.linspace(0, 1, 20, dtype=torch.double)
    assert torch.allclose(evidence_of(sign, Signs(1 - sign, 1 - sign)), sign)
    assert torch.allclose(evidence_of(sign, Signs(sign**2, 1 - sign)), (sign + sign**2) / 2)


def test_excess_is_the_share_of_a_rankings_head_beyond_chance() -> None:
    sign = torch.linspace(1, 0, 1000)  # its head are the first twenty
    tenth = torch.zeros(1000, dtype=torch.int64)
    tenth[:10] = tenth[100:190] = 1
    assert excess(1, tenth, sign) == pytest.approx((0.5 - 0.1) / 0.9)
    assert excess(0, tenth, sign) == 0  # nine tenths of all, half of the head
    alone = torch.ones(1000, dtype=torch.int64)
    alone[20:] = 0
    assert excess(1, alone, sign) == pytest.approx(1)
    large = torch.zeros(1000, dtype=torch.int64)
    large[::5] = 1
    assert excess(0, large, sign) == 0  # a large class is no more common at the head than anywhere


@pytest.mark.parametrize(("in_head", "accused"), [(13, True), (9, False)])
def test_two_thirds_of_both_heads_accuse_a_class_and_half_of_them_do_not(in_head: int, accused: bool) -> None:
    sign = torch.linspace(1, 0, 1000, dtype=torch.double)  # the head are the first twenty
    labels = torch.arange(1000) % 9 + 1
    labels[:in_head] = labels[25 :: 975 // (100 - in_head)] = 0  # a tenth of all, else evenly spread
    none = torch.zeros(1000)
    found = trial_of(AblPlus(), 0, labels, Signs(sign, sign), sorted_(none, none.bool(), none.bool()))
    assert found.guilty is accused
    assert not found.believed  # nothing is strange


def test_a_class_of_two_kinds_of_which_one_looks_like_another_class_is_not_accused() -> None:
    """Digits, seeds 20 and 21: half of the ones look like eights, and training likes them."""
    labels = torch.arange(1000) // 100
    members = (labels == 0).nonzero().flatten()
    strangeness, sign = torch.zeros(1000), torch.zeros(1000, dtype=torch.double)
    strangeness[members[50:]], sign[members[50:]], sign[labels == 1] = 1.0, 1.0, 2.0
    trusted = torch.zeros(1000, dtype=torch.bool)
    trusted[members[:30]] = True
    for kinds, accused in ((9, True), (4, True), (2, False), (1, False)):
        found = trial_of(
            AblPlus(), 0, labels, Signs(sign, sign), sorted_(strangeness, trusted, trusted, kinds)
        )
        assert found.sorted_out is accused
        assert found.variety == pytest.approx(kinds, rel=0.1)
    none = torch.zeros(1000)
    assert trial_of(AblPlus(), 0, labels, Signs(sign, sign), sorted_(none, trusted, trusted)).variety == 1
