"""abl_plus: what it reports for poisoned and for clean sets, and its signs on small examples."""

import json
import math
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from tests.lab.defenses.cases import BADNETS, NOTHING, defended, number
from tests.lab.memory import MemoryRecorder, MemoryStore
from worker.lab.defenses import abl_plus, removal, signs
from worker.lab.defenses.abl_plus import MARGIN, margin_loss
from worker.lab.defenses.removal import ClassParts, split_class, split_classes
from worker.lab.defenses.signs import combine_signs, otsu_threshold, separability, sharpen

SPEC = {"name": "abl_plus"}
BLEND = {"name": "blend", "target_class": 3}
ALL_TO_ALL = {"name": "badnets", "label_mode": "all_to_all", "poisoning_rate": 0.2}


def believes(recorder: MemoryRecorder) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(recorder.files["seed-0/abl_plus/belief.json"])
    return document["believes"] | {"truth": document["truth"]}


# One attack shows that it works, and its stages are those of the tests below; another one takes a quarter of a minute.
@pytest.mark.parametrize(("attack", "target"), [(BADNETS, 0), pytest.param(BLEND, 3, marks=pytest.mark.long)])
def test_finds_and_leaves_out_the_poison(attack: dict[str, object], target: int) -> None:
    recorder = defended(attack, SPEC)
    assert number(recorder, "undefended", "attack_success_rate") >= 0.95
    assert number(recorder, "abl_plus", "attack_success_rate") <= 0.03
    assert number(recorder, "abl_plus", "clean_accuracy") >= 0.95
    assert number(recorder, "abl_plus", "isolation_auroc") >= 0.97
    assert number(recorder, "abl_plus", "isolation_recall") >= 0.95
    belief = believes(recorder)
    assert belief["target_class"] == belief["truth"]["target_class"] == target
    assert belief["target_classes"] == [target]
    assert belief["poisoning_rate"] == pytest.approx(belief["truth"]["poisoning_rate"], abs=0.01)
    poison = next(test for test in belief["removal_tests"] if test["poison"])
    assert poison["known"] < poison["known_held_out"] / 2
    assert [(decoy["trigger"], round(decoy["share"], 1)) for decoy in belief["power"]] == [
        ("patch", 0.3),
        ("blend", 0.3),
        ("warp", 0.3),
        ("patch", 0.1),
        ("blend", 0.1),
    ]  # ten classes take five of the six
    assert any(decoy["noticed"] for decoy in belief["power"])
    assert not recorder.warnings


@pytest.mark.long  # ten classes are divided, and the poison of each is left out: a quarter of a minute
def test_finds_the_poison_of_every_class() -> None:
    recorder = defended(ALL_TO_ALL, SPEC)
    assert number(recorder, "undefended", "attack_success_rate") >= 0.8
    assert number(recorder, "abl_plus", "attack_success_rate") <= 0.1
    belief = believes(recorder)
    assert belief["target_class"] is None
    assert len(belief["target_classes"]) >= 8


def test_warns_if_the_final_model_knows_the_poison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        abl_plus, "margin_loss", lambda losses, penalized: losses.mean()
    )  # teaches half of it
    recorder = defended(BADNETS, SPEC, store=MemoryStore())
    assert number(recorder, "abl_plus", "attack_success_rate") >= 0.9
    assert any("it may still have the backdoor" in warning for warning in recorder.warnings)


@pytest.mark.long  # a quarter of a minute, for a worse case of the first test
def test_missed_poison_is_outvoted(monkeypatch: pytest.MonkeyPatch) -> None:
    def flag_half(sign: Tensor, labels: Tensor, seed: int, *, smaller: bool) -> list[ClassParts]:
        """The half of what is flagged that is farthest from the rest of its class."""
        return [
            split_class(
                p.label,
                p.flagged & (p.doubt > p.doubt[p.flagged].median()),
                p.doubt,
                labels,
                seed,
                is_bimodal=p.is_bimodal,
            )
            for p in split_classes(sign, labels, seed, smaller=smaller)
        ]

    monkeypatch.setattr(abl_plus, "split_classes", flag_half)
    recorder = defended(BADNETS, SPEC, store=MemoryStore())
    assert number(recorder, "abl_plus", "isolation_recall") <= 0.5
    assert number(recorder, "abl_plus", "attack_success_rate") <= 0.1
    assert number(recorder, "abl_plus", "clean_accuracy") >= 0.93


def weights(recorder: MemoryRecorder, arm: str) -> dict[str, list[float]]:
    """The tensors of an arm's model."""
    tensors = load(recorder.files[f"seed-0/{arm}/model.safetensors"])
    return {name: tensor.flatten().tolist() for name, tensor in tensors.items()}


def test_leaves_clean_data_alone() -> None:
    """The result is the clean model to the last bit, which is trained once."""
    recorder = defended(NOTHING, SPEC)
    assert weights(recorder, "abl_plus") == weights(recorder, "clean")
    assert any("abl_plus, victim: taken from the cache" in line for line in recorder.lines)
    belief = believes(recorder)
    nothing = {"poisoned": False, "target_class": None, "poisoning_rate": 0.0}
    assert belief["truth"] == nothing
    assert belief | nothing == belief
    assert belief["target_classes"] == belief["not_judged"] == []
    (warning,) = (warning for warning in recorder.warnings if "the model is the undefended one" in warning)
    assert "Of decoys in other classes, it would have noticed: " in warning
    assert all(decoy in warning for decoy in ("patch on 33%", "warp on 33%", "blend on 10%"))  # or not


def test_clean_classes_that_are_divided_are_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "BIMODAL", 0.0)
    recorder = defended(NOTHING, SPEC, store=MemoryStore())
    assert weights(recorder, "abl_plus") == weights(recorder, "clean")
    belief = believes(recorder)
    assert belief["poisoned"] is False
    assert [test["label"] for test in belief["removal_tests"]] == [*range(10), *range(10)]  # both sides
    assert any("which the removal test does not confirm" in warning for warning in recorder.warnings)


def test_a_small_class_is_not_judged_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signs, "MIN_MEMBERS", 145)
    recorder = defended(NOTHING, SPEC, store=MemoryStore())
    belief = believes(recorder)
    assert 0 < len(belief["not_judged"]) < 10
    assert any("cannot be judged" in warning for warning in recorder.warnings)


def test_the_loss_pushes_the_log_odds_of_the_penalized_below_the_margin_and_no_further() -> None:
    chances = torch.tensor([0.9, 0.5, 0.9, 0.5, 0.01], requires_grad=True)
    losses = -torch.log(chances)
    loss = margin_loss(losses, torch.tensor([False, False, True, True, True]))
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


def test_otsu_threshold_separates_two_groups() -> None:
    assert otsu_threshold(torch.tensor([0.1, 0.9, 0.2, 0.8, 0.15])) == pytest.approx(0.5)
    assert otsu_threshold(torch.tensor([0.4])) == pytest.approx(0.4)


def test_separability_is_that_of_known_distributions() -> None:
    uniform = torch.linspace(0, 1, 1001, dtype=torch.double)
    assert separability(uniform) == pytest.approx(0.75, abs=1e-3)
    assert separability(torch.special.ndtri(uniform[1:-1])) == pytest.approx(2 / torch.pi, abs=0.01)
    assert separability(torch.tensor([0.0, 0.0, 1.0])) == pytest.approx(1)
    assert separability(torch.ones(5)) == 0.0


def test_the_signs_of_each_class_are_combined_so_that_they_divide_it() -> None:
    labels = torch.arange(400) % 2
    poisoned = (labels == 1) & (torch.arange(400) % 8 == 1)
    noise = torch.randn(3, 400, generator=torch.Generator().manual_seed(0))
    # Each sign shifts poison by three of its deviations, in its own direction and units.
    shift = 3 * poisoned
    signs = {
        "up": noise[0] + shift,
        "down": 100 * (noise[1] - shift),
        "third": noise[2] + shift,
        "same": torch.ones(400),
    }
    combined = combine_signs(signs, labels)
    alone = separability((noise[0] + shift)[labels == 1])
    assert separability(combined[labels == 1]) > alone + 0.05
    assert separability(combined[labels == 0]) < 0.75
    assert combined[labels == 0].mean().item() == pytest.approx(0, abs=1e-4)  # each class has its own origin


def test_a_division_across_the_largest_variance_is_found() -> None:
    draw = torch.Generator().manual_seed(0)
    high = torch.arange(300) % 3 == 0
    along = torch.randn(300, generator=draw, dtype=torch.double)
    across = 0.05 * torch.randn(300, generator=draw, dtype=torch.double) + 0.6 * high
    # Most of the variance, which both signs share, has nothing to do with the two groups.
    values = torch.stack([along, along + 3 * across], dim=1)
    assert separability(values[:, 1]) < 0.75
    sharp = sharpen(values, values[:, 1])
    assert separability(sharp) > 0.85
    found = sharp > otsu_threshold(sharp)
    assert torch.equal(found, high) or torch.equal(~found, high)


def test_bimodal_classes_are_divided_and_at_least_the_three_most_separable() -> None:
    labels = torch.arange(1500) % 5
    spread = torch.special.ndtri((torch.arange(1500) + 0.5) / 1500)
    poisoned = (labels == 2) & (spread > 0.5)
    # Classes 1 and 4 are divided a little.
    sign = spread + 5 * poisoned + 0.1 * spread.sign() * ((labels == 1) + 1.5 * (labels == 4))
    for flags_smaller in (True, False):
        divided = split_classes(sign, labels, 0, smaller=flags_smaller)
        assert {parts.label: parts.is_bimodal for parts in divided} == {1: False, 2: True, 4: False}
    smaller, larger = (split_classes(sign, labels, 0, smaller=side)[1] for side in (True, False))
    assert torch.equal(smaller.flagged, poisoned)
    assert torch.equal(larger.flagged, (labels == 2) & ~poisoned)
    # What is nearest to a side is its neighbor across the threshold, at either end.
    assert smaller.near[larger.flagged].nonzero().max() == int(larger.flagged.sum()) - 1
    assert larger.near[smaller.flagged].nonzero().min() == 0
    # The other end of the sign is the same division.
    assert torch.equal(split_classes(-sign, labels, 0, smaller=True)[1].flagged, poisoned)
    everywhere = split_classes(spread + 5 * (torch.arange(1500) % 3 == 0), labels, 0, smaller=True)
    assert [parts.label for parts in everywhere if parts.is_bimodal] == [0, 1, 2, 3, 4]


def test_small_classes_and_two_classes_are_not_divided() -> None:
    labels = torch.tensor([0] * 49 + [1] * 50 + [2] * 50)
    values = (torch.arange(149) % 2).double()
    assert [parts.label for parts in split_classes(values, labels, 0, smaller=True)] == [1, 2]
    assert split_classes(values, labels.clamp(min=1), 0, smaller=True) == []
