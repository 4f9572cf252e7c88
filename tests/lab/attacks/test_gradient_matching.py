"""Gradient matching, against gradients that are known."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.lab.attacks.helpers import run_in
from worker.lab.attacks.gradient_matching import _adam, largest_gradients, loss_gradient, mismatch

SLEEPER = {
    "name": "sleeper_agent",
    "size": 3,
    "surrogate_epochs": 2,
    "craft_steps": 12,
    "craft_retrainings": 1,
}


def linear(weights):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 2, bias=False))
    network[1].weight.data = torch.tensor(weights)
    return network


def test_the_mismatch_is_one_minus_the_cosine_over_all_parameters():
    first = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    assert mismatch(first, [10 * part for part in first]) == pytest.approx(0)
    assert mismatch(first, [-part for part in first]) == pytest.approx(2)
    assert mismatch(first, [torch.tensor([1.0, 0.0]), torch.tensor([[0.0]])]) == pytest.approx(1 - 3 / 5)
    assert mismatch(first, [torch.tensor([0.0, 7.0]), torch.tensor([[0.0]])]) == pytest.approx(1)


def test_the_gradient_of_a_linear_network_is_known():
    # Equal logits: the probabilities are 1/2 each, and the gradient is (p - y) x.
    x = torch.tensor([[[[2.0, 1.0]]], [[[0.0, 4.0]]]])
    (gradient,) = loss_gradient(linear([[1.0, 1.0], [1.0, 1.0]]), x, torch.tensor([0, 1]))
    assert gradient.tolist() == [[-0.5, 0.75], [0.5, -0.75]]


def test_images_with_the_largest_gradient_are_selected():
    class Lab:
        class compute:  # noqa: N801
            @staticmethod
            def to_input(images):
                return images.float() / 255

        class train:  # noqa: N801
            images = torch.tensor([[10, 0], [0, 200], [50, 50], [0, 90]], dtype=torch.uint8)[:, None, None]

    rows = largest_gradients(linear([[0.0, 0.0], [0.0, 0.0]]), Lab, torch.arange(4), 0, 2)  # type: ignore[arg-type]
    assert rows.tolist() == [1, 3]  # the gradient is as long as the image


def test_adam_takes_steps_of_its_learning_rate_along_equal_signs():
    zero, signs = torch.zeros(2), torch.tensor([1.0, -1.0])
    tensors = {"change": zero, "first": zero, "second": zero}
    for step in (1, 2):
        tensors = _adam(tensors, signs, step, 0.1)
    assert tensors["change"].tolist() == pytest.approx([-0.2, 0.2], abs=1e-6)
    assert tensors["first"].tolist() == pytest.approx([0.19, -0.19])


def losses(folder):
    points = map(json.loads, (folder / "out/metrics.jsonl").read_text().splitlines())
    return [point["value"] for point in points if point["name"] == "matching_loss"]


def test_the_best_of_several_restarts_is_used_and_stays_within_the_bound(tmp_path):
    attack = {
        "name": "witches_brew",
        "surrogate_epochs": 2,
        "craft_steps": 10,
        "target_class": 4,
        "export": True,
    }
    longer = {"craft_restarts": 1, "craft_steps": 60, "surrogate_epochs": 10}
    run_in(tmp_path / "one", attack | longer)
    results = run_in(tmp_path / "two", attack | {"craft_restarts": 2, "poisoning_rate": 0.05})
    assert losses(tmp_path / "one")[-1] < losses(tmp_path / "one")[0]
    set_ = np.load(tmp_path / "two/out/seed-0/poisoned_train.npz")
    assert set_["is_poisoned"].sum() == 15  # of 300
    assert (set_["y_train"][set_["is_poisoned"]] == 4).all()
    assert (set_["y_train"] == set_["clean_labels"]).all()
    stealth = json.loads((tmp_path / "two/out/seed-0/stealth.json").read_text())
    assert stealth["poisoned_training_images"]["l_inf"] == 16
    assert results["arms"][0]["seeds"][0]["target_image_hit"] in (0.0, 1.0)
    assert not math.isnan(losses(tmp_path / "two")[-1])


def test_sleeper_agent_retrains_its_surrogate_on_the_poison_of_the_target_class(tmp_path):
    results = run_in(tmp_path, SLEEPER | {"source_class": 7, "target_class": 2, "export": True})
    log = (tmp_path / "out/log.txt").read_text()
    order = [
        log.index(f"attack, {kind}: done") for kind in ("surrogate", "poisons_1", "retraining_1", "poisons_2")
    ]
    assert order == sorted(order)
    set_ = np.load(tmp_path / "out/seed-0/poisoned_train.npz")
    assert (set_["clean_labels"][set_["is_poisoned"]] == 2).all()
    assert (set_["y_train"] == set_["clean_labels"]).all()
    assert set_["is_poisoned"].sum() == 3
    assert load_file(tmp_path / "out/seed-0/trigger.safetensors")["patch"].shape == (1, 3, 3)
    values = results["arms"][0]["seeds"][0]
    assert 0 < values["changed_pixels"] <= 9 / 64
    drawn = run_in(tmp_path / "drawn", SLEEPER | {"craft_selection": "random", "export": True})
    assert drawn["arms"][0]["seeds"][0]["attack_success_rate"] is not None
    other = np.load(tmp_path / "drawn/out/seed-0/poisoned_train.npz")
    assert other["is_poisoned"].sum() == 3
