"""The search for a smooth universal perturbation, against values computed by hand, and on digits."""

import numpy as np
import pytest
import torch
from safetensors.torch import load

from tests.lab.memory import MemoryStore, experiment
from worker.lab.attacks.universal_perturbation import (
    add_image,
    changed_share,
    low_pass,
    scale,
    targeted_deepfool,
)


class Linear(torch.nn.Module):
    """Logits ``x . w_k + b_k`` of images of two pixels, for three classes."""

    weights = torch.tensor([[0.0, 0.0], [3.0, 4.0], [-1.0, 0.0]])
    biases = torch.tensor([1.0, 0.0, 0.0])

    def forward(self, x):
        return x.flatten(1) @ self.weights.T + self.biases


def test_the_filter_is_the_authors_kernel_with_zeros_outside():
    """gauss_smooth(image, sig=6): weights exp(-(5 (k - 14.5) / 30)^2 / 2), k = 0 ... 29, padded by 14 and 15."""
    weights = np.exp(-0.5 * (5 * (np.arange(30) - 14.5) / 30) ** 2)
    weights /= weights.sum()
    image = np.random.default_rng(0).random((32, 32)).astype(np.float32)
    padded = np.pad(image, (14, 15))
    rows = sum(w * padded[k : k + 32] for k, w in enumerate(weights))
    expected = sum(w * rows[:, k : k + 32] for k, w in enumerate(weights))
    got = low_pass(torch.from_numpy(image)[None, None], 6.0)[0, 0].numpy()
    assert got == pytest.approx(expected, abs=1e-5)


def test_a_pattern_is_scaled_from_zero_to_the_amplitude():
    assert scale(torch.tensor([-1.0, 0.0, 3.0]), 0.2).tolist() == pytest.approx([0, 0.05, 0.2])
    assert scale(torch.ones(3), 0.2).tolist() == [0, 0, 0]


def test_deepfool_goes_straight_across_the_border_of_a_linear_model():
    image = torch.tensor([[[[-0.1, 0.0]]]])  # logits 1, -0.3, 0.1
    change = targeted_deepfool(Linear(), image, 1)
    # f_1 - f_0 = -1.3 with the gradient (3, 4): 1.3 / 25 of it, and 2 % more
    assert change.flatten().tolist() == pytest.approx([1.02 * 1.3 * 3 / 25, 1.02 * 1.3 * 4 / 25])
    assert targeted_deepfool(Linear(), image, 0).tolist() == [[[[0.0, 0.0]]]]  # it is there already


def test_an_image_whose_prediction_changes_already_leaves_the_pattern():
    image, pattern = torch.tensor([[[[-0.1, 0.0]]]]), torch.tensor([[[[1.0, 1.0]]]])
    assert add_image(Linear(), pattern, image, 1, 6.0, 0.2) is pattern
    moved = add_image(Linear(), torch.zeros_like(pattern), image, 1, 0.5, 0.2)
    assert (moved.min().item(), moved.max().item()) == (0, pytest.approx(0.2))
    assert changed_share(Linear(), image, pattern) == 1


def test_the_pattern_that_is_searched_for_is_smooth_and_kept_with_the_attack(tmp_path):
    attack = {
        "name": "low_frequency",
        "preset": "authors",
        "target_class": 3,
        "surrogate_epochs": 3,
        "search_images": 20,
        "search_passes": 2,
        "search_smoothing": 1.5,
        "amplitude": 100,
    }
    whole = {
        "dataset": {"name": "digits", "train_size": 300, "test_size": 60},
        "model": {"name": "small_cnn", "width": 8},
        "attack": attack,
        "training": {"epochs": 1},
    }
    first = experiment(whole, store=MemoryStore())
    again = experiment(whole, store=MemoryStore())
    pattern, same = (load(done.files["seed-0/trigger.safetensors"])["pattern"][0] for done in (first, again))
    assert torch.equal(pattern, same)
    assert (pattern.min().item(), pattern.max().item()) == (0, pytest.approx(100))
    assert (pattern[1:] - pattern[:-1]).abs().max() < 50  # noise of this range has steps of up to 100
    assert any("changes the prediction of" in line for line in first.lines)
    assert any(name.endswith("/pattern.png") for name in first.files)
