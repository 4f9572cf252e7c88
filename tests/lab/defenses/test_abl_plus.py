"""abl_plus: what it reports for a poisoned and for a clean set, and its functions on small examples."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from app.specs.defenses.abl_plus import MARGIN, AblPlus
from tests.lab.defenses.cases import BADNETS, NOTHING, defended, number
from worker.lab.defenses import abl_plus
from worker.lab.defenses.abl_plus import margin_loss, most_separable
from worker.lab.defenses.base import TrainingDefense
from worker.lab.defenses.signs import Signs, otsu_threshold, separability
from worker.lab.defenses.sorting import (
    assess_class,
    candidate_classes,
    combine_evidence,
    excess_at_top,
    trusted_core,
)
from worker.lab.stages import Outcome, StageRun

SPEC = {"name": "abl_plus", "scout_epochs": 12}
BLEND = {"name": "blend", "target_class": 3}


# One attack shows that it works, and its stages are those of the tests below; another one takes half a minute.
@pytest.mark.parametrize(("attack", "target"), [(BADNETS, 0), pytest.param(BLEND, 3, marks=pytest.mark.long)])
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
    removal = belief["believes"]["removal_test"]
    assert removal["known"] < removal["known_held_out"] / 2
    assert removal["dominance"] >= 0.9


def test_unlearns_the_flagged_samples_if_enough_poison_was_missed_to_leave_a_backdoor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(abl_plus, "otsu_threshold", lambda values: float(values.double().quantile(0.8)))
    # A proof of its own, so that no verdict is taken from the cache.
    recorder = defended(BADNETS, {**SPEC, "proof": 1.09})
    assert number(recorder, "abl_plus", "isolation_recall") <= 0.5
    assert any("predicts the flagged label for" in line for line in recorder.lines)
    assert not any(
        "trained once more" in line for line in recorder.lines
    )  # errors on missed poison do not count
    assert ("abl_plus", 0, "isolated_accuracy") in recorder.points
    assert number(recorder, "abl_plus", "attack_success_rate") <= 0.2
    assert number(recorder, "abl_plus", "clean_accuracy") >= 0.93


@pytest.mark.long  # as long as the one above, which trains in the same way
def test_an_underfitted_model_is_trained_once_more_from_other_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = abl_plus.train_final

    def badly_at_first(lab: TrainingDefense, stage: StageRun, verdict: Outcome, purpose: str) -> Outcome:
        slow = replace(lab, recipe=replace(lab.recipe, learning_rate=1e-4))
        return train(slow if purpose == "victim" else lab, stage, verdict, purpose)

    monkeypatch.setattr(abl_plus, "train_final", badly_at_first)
    recorder = defended(BADNETS, {**SPEC, "proof": 1.07})
    assert any("trained once more from other initial weights" in line for line in recorder.lines)
    assert number(recorder, "abl_plus", "clean_accuracy") >= 0.95
    assert number(recorder, "abl_plus", "attack_success_rate") <= 0.03


def test_leaves_clean_data_alone() -> None:
    recorder = defended(NOTHING, SPEC)
    loss = number(recorder, "clean", "clean_accuracy") - number(recorder, "abl_plus", "clean_accuracy")
    assert loss <= 0.02  # seven of 360 images: two models trained in another order differ by as much
    belief = json.loads(recorder.files["seed-0/abl_plus/belief.json"])
    assert belief["believes"] == {"poisoned": False, "target_class": None, "poisoning_rate": 0.0}
    assert belief["truth"] == {"poisoned": False, "target_class": None, "poisoning_rate": 0.0}
    assert any("no class was flagged" in warning for warning in recorder.warnings)


def test_a_wrong_accusation_is_dropped_before_it_costs_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        abl_plus, "assess_class", lambda *arguments: replace(assess_class(*arguments), bimodality=1.0)
    )
    recorder = defended(
        NOTHING, {**SPEC, "sorting_epochs": 9}
    )  # its own stages: no class is flagged in the others
    loss = number(recorder, "clean", "clean_accuracy") - number(recorder, "abl_plus", "clean_accuracy")
    assert loss <= 0.02
    believes = json.loads(recorder.files["seed-0/abl_plus/belief.json"])["believes"]
    assert believes["poisoned"] is False
    assert believes["target_class"] is None
    assert believes["removal_test"]["known"] >= 0.6
    assert any("look like poison, which is not confirmed" in warning for warning in recorder.warnings)


def test_the_loss_pushes_the_log_odds_of_the_flagged_below_the_margin_and_no_further() -> None:
    chances = torch.tensor([0.9, 0.5, 0.9, 0.5, 0.01], requires_grad=True)
    losses = -torch.log(chances)
    isolated = torch.tensor([False, False, True, True, True])
    loss = margin_loss(losses, isolated)
    pushed = [MARGIN + math.log(9), MARGIN, 0.0]  # at odds of 1 to 99 the last is past the margin of 4
    assert loss.item() == pytest.approx((-math.log(0.9) - math.log(0.5) + sum(pushed)) / 5, abs=1e-5)
    loss.backward()
    # d log-odds / dp = 1 / (p (1 - p)), over a batch of five
    expected = torch.tensor([-1 / 0.9, -1 / 0.5, 1 / 0.09, 1 / 0.25, 0.0]) / 5
    assert chances.grad is not None
    assert torch.allclose(chances.grad, expected, rtol=1e-4)
    certain = torch.zeros(1, requires_grad=True)
    margin_loss(certain, torch.ones(1, dtype=torch.bool)).backward()
    assert certain.grad is not None
    assert certain.grad.isfinite().all()


@pytest.mark.long  # half a minute on a busy machine, for a milder case of the unlearning above
def test_missed_poison_is_outvoted(monkeypatch: pytest.MonkeyPatch) -> None:
    def half_blind(*arguments: Any) -> torch.Tensor:
        evidence = combine_evidence(*arguments)
        evidence[::10] = (
            0.0  # a tenth of the class gets no evidence; with a fifth the backdoor is learned on some machines
        )
        return evidence

    monkeypatch.setattr(abl_plus, "combine_evidence", half_blind)
    recorder = defended(BADNETS, {**SPEC, "proof": 1.08, "unlearning_epochs": 0})
    assert number(recorder, "abl_plus", "isolation_recall") == pytest.approx(0.9, abs=0.06)
    assert number(recorder, "abl_plus", "attack_success_rate") <= 0.1
    assert number(recorder, "abl_plus", "clean_accuracy") >= 0.95


def test_otsu_threshold_separates_two_groups() -> None:
    assert otsu_threshold(torch.tensor([0.1, 0.9, 0.2, 0.8, 0.15])) == pytest.approx(0.5)
    assert otsu_threshold(torch.tensor([0.4])) == pytest.approx(0.4)


def test_the_most_separable_splitting_round_is_used() -> None:
    generator = torch.Generator().manual_seed(0)
    poison = torch.arange(200) < 100
    sharp = torch.where(poison, 0.9, 0.1) + 0.05 * torch.randn(200, generator=generator)
    murky = torch.where(poison, 0.3, 0.2) + 0.15 * torch.rand(200, generator=generator)
    for rounds in ([sharp, murky], [murky, sharp]):
        assert most_separable([Outcome({"evidence": evidence}) for evidence in rounds]) is sharp


def test_candidate_classes_are_the_majority_classes_at_the_top_of_the_rankings() -> None:
    labels = torch.arange(100) % 4
    speed = (labels == 2).double()
    dominance = (labels == 1).double()
    assert candidate_classes(Signs(speed, dominance), labels) == [1, 2]
    assert candidate_classes(Signs(speed, speed), labels) == [2]
    two = torch.arange(98) % 2
    assert candidate_classes(Signs((two == 1).double(), (two == 0).double()), two) == [1]


def test_a_bimodal_class_is_a_candidate_whatever_the_rankings_say() -> None:
    labels = torch.arange(400) % 4
    values = torch.zeros(400, dtype=torch.double)
    values[labels == 2] = 1.0  # names class 2
    members = (labels == 0).nonzero().flatten()
    values[members] = torch.linspace(0.4, 0.6, 100, dtype=torch.double)
    assert candidate_classes(Signs(values, values), labels) == [2]
    values[members[:40]] -= 0.4
    assert candidate_classes(Signs(values, values), labels) == [0, 2]


def test_separability_is_that_of_known_distributions() -> None:
    uniform = torch.linspace(0, 1, 1001, dtype=torch.double)
    assert separability(uniform) == pytest.approx(0.75, abs=1e-3)
    assert separability(torch.special.ndtri(uniform[1:-1])) == pytest.approx(2 / torch.pi, abs=0.01)
    assert separability(torch.tensor([0.0, 0.0, 1.0])) == pytest.approx(1)
    assert separability(torch.ones(5)) == 0.0
    few = torch.arange(100) < 49
    signs = Signs((torch.arange(100) % 2).double(), (torch.arange(100) % 2).double())
    assert signs.bimodality(few) == 0.0
    assert signs.bimodality(~few) == pytest.approx(1)


def test_the_core_uses_only_signs_that_agree() -> None:
    members, strangeness = torch.arange(10), torch.linspace(0, 1, 10)
    against = Signs(1 - strangeness, 1 - strangeness)
    assert trusted_core(members, strangeness, against, 0.3).tolist() == [0, 1, 2]
    # Both signs rank member 0, the least strange, as the most suspicious, and agree on the others.
    doubted = strangeness.clone()
    doubted[0] = 2
    assert 0 not in trusted_core(members, strangeness, Signs(doubted, doubted), 0.3).tolist()


def is_flagged(strange: int, trusted_known: bool, sign: torch.Tensor, at_top: bool) -> bool:
    """Whether a class of 40 among 1,500 is flagged; its first 10 members are trusted, ``strange`` others are not.

    Two of the trusted members are held out, and the classifier recognizes them or not.
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
    if not at_top:
        values[40:160] += 5  # other classes rank above this one in both rankings
    return assess_class(
        AblPlus(), 0, labels, Signs(values, values), sorted_(strangeness, trusted, held_out)
    ).flagged


def sorted_(
    strangeness: torch.Tensor, trusted: torch.Tensor, held_out: torch.Tensor, kinds: int = 9
) -> Outcome:
    """``kinds``: how many other classes the members resemble."""
    elsewhere = torch.arange(len(strangeness)) % kinds + 1
    return Outcome(
        {"strangeness": strangeness, "elsewhere": elsewhere, "trusted": trusted, "held_out": held_out}
    )


def test_flags_by_agreement_by_number_or_by_both_rankings() -> None:
    strange_ones_are_fast = torch.linspace(3, 2, 30)
    strange_ones_are_slow = torch.linspace(2, 3, 30)
    assert is_flagged(8, True, strange_ones_are_fast, at_top=False)
    # A clean class: its strange members are the hard ones.
    assert not is_flagged(8, True, strange_ones_are_slow, at_top=False)
    assert not is_flagged(25, True, strange_ones_are_slow, at_top=False)
    alike = torch.zeros(30)
    assert not is_flagged(17, True, alike, at_top=False)
    assert is_flagged(19, True, alike, at_top=False)  # nearly half of the class is strange
    # An unreliable classifier is ignored, and half of the top of both rankings is not enough without it.
    assert not is_flagged(25, False, strange_ones_are_slow, at_top=False)
    assert not is_flagged(25, False, strange_ones_are_fast, at_top=False)
    assert is_flagged(25, False, strange_ones_are_slow, at_top=True)


def test_an_unreliable_classifier_is_ignored() -> None:
    labels, trusted = torch.zeros(20, dtype=torch.int64), torch.zeros(20, dtype=torch.bool)
    trusted[:10] = True
    known, unknown = torch.zeros(20), torch.ones(20)
    known[10:] = 1.0
    sign = torch.linspace(0, 1, 20, dtype=torch.double)
    reliable = assess_class(AblPlus(), 0, labels, Signs(sign, sign), sorted_(known, trusted, trusted))
    ignored = assess_class(AblPlus(), 0, labels, Signs(sign, sign), sorted_(unknown, trusted, trusted))
    assert reliable.flagged_by_sorting
    assert not ignored.flagged_by_sorting


def test_a_classifier_that_learned_the_poison_as_the_class_is_ignored() -> None:
    """Ten trusted members, ten strange ones, five between: those that rank above the others are the poison."""
    labels = torch.zeros(25, dtype=torch.int64)
    trusted, strangeness = torch.zeros(25, dtype=torch.bool), torch.zeros(25)
    trusted[:10], strangeness[15:] = True, 1.0
    between = torch.full((5,), 0.7)
    above, below = torch.linspace(0.8, 1, 10), torch.linspace(0, 0.2, 10)
    for sign, separates in (
        (torch.cat([below, between, above]), True),
        # The strange ones rank below the few between, as in a poisoned class on digits.
        (torch.cat([below, between, torch.full((10,), 0.6)]), True),
        (torch.cat([above, between, below]), False),
    ):
        evidence = assess_class(
            AblPlus(), 0, labels, Signs(sign.double(), sign.double()), sorted_(strangeness, trusted, trusted)
        )
        assert evidence.reliable
        assert evidence.separates_members is separates


def test_evidence_weighs_a_sign_by_its_agreement() -> None:
    sign = torch.linspace(0, 1, 20, dtype=torch.double)
    assert torch.allclose(combine_evidence(sign, Signs(1 - sign, 1 - sign)), sign)
    assert torch.allclose(combine_evidence(sign, Signs(sign**2, 1 - sign)), (sign + sign**2) / 2)


def test_excess_is_the_share_at_the_top_of_a_ranking_beyond_chance() -> None:
    sign = torch.linspace(1, 0, 1000)  # the top are the first twenty
    tenth = torch.zeros(1000, dtype=torch.int64)
    tenth[:10] = tenth[100:190] = 1
    assert excess_at_top(1, tenth, sign) == pytest.approx((0.5 - 0.1) / 0.9)
    assert excess_at_top(0, tenth, sign) == 0  # nine tenths of all samples, half of the top
    alone = torch.ones(1000, dtype=torch.int64)
    alone[20:] = 0
    assert excess_at_top(1, alone, sign) == pytest.approx(1)
    large = torch.zeros(1000, dtype=torch.int64)
    large[::5] = 1
    assert excess_at_top(0, large, sign) == 0  # a large class is no more common at the top than elsewhere


@pytest.mark.parametrize(("at_top", "flagged"), [(13, True), (9, False)])
def test_two_thirds_of_both_tops_flag_a_class_and_half_of_them_do_not(at_top: int, flagged: bool) -> None:
    sign = torch.linspace(1, 0, 1000, dtype=torch.double)  # the top are the first twenty
    labels = torch.arange(1000) % 9 + 1
    labels[:at_top] = labels[25 :: 975 // (100 - at_top)] = 0  # a tenth of all, else evenly spread
    none = torch.zeros(1000)
    evidence = assess_class(AblPlus(), 0, labels, Signs(sign, sign), sorted_(none, none.bool(), none.bool()))
    assert evidence.flagged is flagged
    assert not evidence.separates_members  # nothing is strange


def test_a_class_of_two_kinds_of_which_one_looks_like_another_class_is_not_flagged() -> None:
    """Digits, seeds 20 and 21: half of the ones look like eights and are learned fast."""
    labels = torch.arange(1000) // 100
    members = (labels == 0).nonzero().flatten()
    strangeness, sign = torch.zeros(1000), torch.zeros(1000, dtype=torch.double)
    strangeness[members[50:]], sign[members[50:]], sign[labels == 1] = 1.0, 1.0, 2.0
    trusted = torch.zeros(1000, dtype=torch.bool)
    trusted[members[:30]] = True
    for kinds, flagged in ((9, True), (4, True), (2, False), (1, False)):
        evidence = assess_class(
            AblPlus(), 0, labels, Signs(sign, sign), sorted_(strangeness, trusted, trusted, kinds)
        )
        assert evidence.flagged_by_sorting is flagged
        assert evidence.variety == pytest.approx(kinds, rel=0.1)
    none = torch.zeros(1000)
    assert assess_class(AblPlus(), 0, labels, Signs(sign, sign), sorted_(none, trusted, trusted)).variety == 1
