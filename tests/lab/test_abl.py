"""ABL: its losses against hand-computed values, its ranking, and that it removes a backdoor."""

import math
from typing import Any

import pytest
import torch

from app.specs.defenses.abl import Abl
from tests.lab.memory import MemoryStore, experiment
from worker.lab.compute import choose_compute
from worker.lab.defenses.abl import (
    isolation_loss,
    lowest_ranked,
    majority_class,
    smoothed_ranks,
    unlearning_loss,
)
from worker.lab.evaluation import sample_losses
from worker.lab.networks.small_cnn import SmallCnn
from worker.lab.training import _optimizer_step

ROWS = torch.arange(2)


def _value_and_gradient(
    loss: object, values: list[float], rows: torch.Tensor = ROWS
) -> tuple[float, list[float]]:
    losses = torch.tensor(values, requires_grad=True)
    value = loss(losses, rows)  # type: ignore[operator]
    value.backward()
    assert losses.grad is not None
    return value.item(), losses.grad.tolist()


@pytest.mark.parametrize(
    ("loss", "reduction", "value", "gradient"),
    [
        # losses 0.2 and 1.0, gamma 0.5: the mean 0.6 is above gamma, one sample is below
        ("local_gradient_ascent", "batch_mean", 0.6, [0.5, 0.5]),
        ("local_gradient_ascent", "per_sample", (-0.2 + 1.0) / 2, [-0.5, 0.5]),
        ("flooding", "batch_mean", 0.1 + 0.5, [0.5, 0.5]),
        ("flooding", "per_sample", (0.3 + 0.5 + 0.5 + 0.5) / 2, [-0.5, 0.5]),
    ],
)
def test_isolation_losses(loss: str, reduction: str, value: float, gradient: list[float]) -> None:
    spec = Abl(isolation_loss=loss, isolation_reduction=reduction, gamma=0.5)  # type: ignore[arg-type]
    got, slope = _value_and_gradient(isolation_loss(spec), [0.2, 1.0])
    assert got == pytest.approx(value)
    assert slope == pytest.approx(gradient)


def test_batch_mean_ascends_below_gamma() -> None:
    _, slope = _value_and_gradient(isolation_loss(Abl(gamma=0.5)), [0.2, 0.4])
    assert slope == pytest.approx([-0.5, -0.5])


def test_unlearning_losses() -> None:
    isolated = torch.tensor([False, True])
    joint = unlearning_loss(Abl(unlearning_objective="joint"), isolated)
    assert _value_and_gradient(joint, [0.3, 0.8]) == (pytest.approx(0.3 - 0.8), pytest.approx([1, -1]))
    ascent = unlearning_loss(Abl(unlearning_objective="ascent"), isolated)
    assert _value_and_gradient(ascent, [0.8], torch.tensor([1])) == (pytest.approx(-0.8), pytest.approx([-1]))
    unlikelihood = unlearning_loss(Abl(unlearning_objective="unlikelihood"), isolated)
    p = math.exp(-0.8)
    value, slope = _value_and_gradient(unlikelihood, [0.3, 0.8])
    assert value == pytest.approx(0.3 - math.log(1 - p), rel=1e-5)
    assert slope == pytest.approx([1, -p / (1 - p)], rel=1e-5)


def test_unlikelihood_is_finite_where_the_network_is_certain() -> None:
    loss = unlearning_loss(Abl(), torch.tensor([True, True]))
    value, slope = _value_and_gradient(loss, [0.0, 1e-9])
    assert math.isfinite(value)
    assert all(math.isfinite(s) for s in slope)


def test_unlearning_with_nothing_isolated_in_the_batch_is_plain_training() -> None:
    loss = unlearning_loss(Abl(), torch.tensor([False, False]))
    assert _value_and_gradient(loss, [0.2, 0.4]) == (pytest.approx(0.3), pytest.approx([0.5, 0.5]))


def test_ranks_are_averaged_over_the_window_and_isolation_takes_the_lowest() -> None:
    window = [torch.tensor([0.1, 0.5, 0.9]), torch.tensor([9.0, 0.3, 8.0])]
    ranks = smoothed_ranks(window)
    assert ranks.tolist() == [0.5, 0.25, 0.75]  # ranks (0, 1, 2) and (2, 0, 1), halved
    assert lowest_ranked(ranks, 0.34).tolist() == [1]
    assert lowest_ranked(ranks, 0.001).tolist() == [1]  # never less than one sample


def test_the_ranking_does_not_depend_on_the_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network, images = SmallCnn(1, 10, 16, 3), torch.randint(256, (50, 1, 8, 8), dtype=torch.uint8)
    labels, compute = torch.randint(10, (50,)), choose_compute("cpu", "float32", compile=False)
    whole = sample_losses(network, images, labels, compute)
    monkeypatch.setattr("worker.lab.compute.EVALUATION_BATCH", 7)
    assert torch.allclose(sample_losses(network, images, labels, compute), whole, atol=1e-5)


def test_majority_class_needs_more_than_half() -> None:
    assert majority_class(torch.tensor([4, 4, 4, 1])) == 4
    assert majority_class(torch.tensor([4, 4, 1, 1])) is None


def test_presets_fill_omitted_fields() -> None:
    authors = Abl.model_validate({"name": "abl", "preset": "authors", "isolation_ratio": 0.02})
    assert (authors.isolation_loss, authors.isolation_epochs, authors.isolation_ratio) == (
        "flooding",
        10,
        0.02,
    )
    paper = Abl.model_validate({"name": "abl", "preset": "paper"})
    assert (paper.isolation_reduction, paper.unlearning_objective) == ("batch_mean", "ascent")
    assert Abl.model_validate(authors.model_dump()) == authors  # the canonical form is equivalent


def test_the_paper_s_preset_keeps_the_mean_loss_of_a_batch_near_gamma() -> None:
    spec = Abl.model_validate({"preset": "paper"})
    _, slope = _value_and_gradient(isolation_loss(spec), [0.2, 1.0])
    assert slope == pytest.approx([0.5, 0.5])


def test_the_authors_unlearning_is_sixteen_unaugmented_steps_of_ascent() -> None:
    spec = Abl.model_validate({"preset": "authors"})
    assert (spec.unlearning_steps, spec.unlearning_objective) == (16, "ascent")
    assert (spec.unlearning_augmentation, spec.weight_decay, spec.finetune_cutout) == (False, 1e-4, 2)


def test_unlearning_is_counted_in_steps_and_the_numbers_before_it_are_results(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = 0

    def step(*arguments: Any) -> torch.Tensor:
        nonlocal taken
        taken += 1
        return _optimizer_step(*arguments)

    monkeypatch.setattr("worker.lab.training._optimizer_step", step)
    store, before = MemoryStore(), 0
    for steps in (0, 7):
        fields = {"preset": "authors", "isolation_epochs": 1, "finetune_epochs": 1, "isolation_ratio": 0.2}
        defense = {"name": "abl", **fields, "unlearning_steps": steps}
        before, taken = taken, 0
        done = experiment(
            {"training": {"epochs": 1}, "defenses": [defense]}, store=store, checkpoint_seconds=1e9
        )
        result = done.results["abl", 0]
        if steps == 0:
            assert result["accuracy_before_unlearning"] == result["clean_accuracy"]
            assert result["attack_success_before_unlearning"] == result["attack_success_rate"]
    assert before > 7
    assert (
        taken == 7
    )  # 287 isolated images are 3 batches: two epochs and one step; all else came from the store


@pytest.mark.slow
# One seed shows that it works; that it does so for other seeds takes ten seconds each.
@pytest.mark.parametrize(
    "seed", [0, pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long)]
)
def test_abl_removes_badnets_from_digits(seed: int) -> None:
    """Requirement: ASR falls from >= 0.95 to <= 0.05 at a loss of at most 0.03 in clean accuracy."""
    attack = {"name": "badnets", "size": 4}
    spec = {"attack": attack, "defenses": [{"name": "abl"}], "training": {"epochs": 15}, "seeds": [seed]}
    done = experiment(spec, checkpoint_seconds=1e9)
    undefended, defended = done.results["undefended", seed], done.results["abl", seed]
    assert undefended["attack_success_rate"] >= 0.95  # type: ignore[operator]
    assert defended["attack_success_rate"] <= 0.05  # type: ignore[operator]
    assert defended["clean_accuracy"] >= 0.93  # type: ignore[operator]
    assert defended["clean_accuracy"] >= undefended["clean_accuracy"] - 0.03  # type: ignore[operator]
    assert not any("cost accuracy" in w for w in done.warnings)


def test_failed_unlearning_is_warned_of() -> None:
    """Unlearning without epochs warns that the isolated samples are still given their label."""
    spec = {
        "training": {"epochs": 1},
        "defenses": [{"name": "abl", "finetune_epochs": 3, "unlearning_epochs": 0, "isolation_epochs": 12}],
    }
    done = experiment(spec, checkpoint_seconds=1e9)
    assert any("are still given their label" in w for w in done.warnings)


def test_lost_accuracy_is_warned_of_without_a_hold_out() -> None:
    """Gradient ascent is unbounded, and the presets of the paper and of its code have no hold-out."""
    ruinous = {
        "preset": "authors",
        "isolation_epochs": 4,
        "finetune_epochs": 6,
        "unlearning_learning_rate": 0.1,
    }
    done = experiment(
        {"training": {"epochs": 1}, "defenses": [{"name": "abl", **ruinous}]}, checkpoint_seconds=1e9
    )
    assert done.results["abl", 0]["clean_accuracy"] < 0.7  # type: ignore[operator]
    assert any("unlearning cost accuracy" in w for w in done.warnings)
