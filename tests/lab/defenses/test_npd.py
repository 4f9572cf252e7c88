"""Neural polarizer: the layer and its losses by hand, and what it removes."""

import math

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from app.specs.facts import BUILT_IN
from app.specs.model import PreActResNet18, SmallCnn
from tests.lab.defenses.cases import BADNETS, defended, number
from worker.lab.defenses.npd import avoidance, find_targets, perturb
from worker.lab.networks import Network, build_network
from worker.lab.networks.loading import load_model
from worker.lab.networks.polarized import PolarizedNetwork

DIGITS = BUILT_IN["digits"]


def test_the_layer_is_the_identity_at_first_and_reads_what_a_convolution_did() -> None:
    network = build_network(SmallCnn(), DIGITS, 0).eval()
    x = torch.rand(2, 1, 8, 8)
    before = network(x)
    polarized = PolarizedNetwork(network).eval()
    assert torch.allclose(
        polarized(x), before, atol=1e-4
    )  # the normalization adds a small constant to the variance
    torch.nn.init.zeros_(polarized.polarizer[0].weight)  # type: ignore[arg-type]
    silenced = polarized(x)
    assert torch.equal(silenced[0], silenced[1])
    assert torch.equal(polarized.features(x)[0], polarized.features(x)[1])


def test_the_layer_of_a_preactresnet18_is_where_its_source_puts_it() -> None:
    network = build_network(PreActResNet18(), DIGITS, 0)
    PolarizedNetwork(network)
    hooked = [name for name, layer in network.named_modules() if layer._forward_pre_hooks]
    assert hooked == ["layer4.1.conv1"]


class Slope(Network):
    """Two classes; the first of two pixels speaks for class 1."""

    def forward(self, x: Tensor) -> Tensor:
        first = x[:, 0, 0, :1]
        return torch.cat([-first, first], 1)


def test_a_perturbation_stays_in_its_ball_and_in_the_range_of_pixels() -> None:
    x, targets = torch.full((1, 1, 1, 2), 0.05), torch.zeros(1, dtype=torch.int64)
    # Logits are equal at 0, where the pixel is clipped: class 0 is not reached, or the first of equal logits.
    moved = perturb(Slope(1), x + 0.5, targets, radius=0.15, steps=5)
    assert moved.flatten().tolist() == pytest.approx([0.55 - 0.15, 0.55])
    assert perturb(Slope(1), x, targets, radius=3.0, steps=2).flatten().tolist() == pytest.approx([0.0, 0.05])


def test_targets_are_the_most_likely_other_classes_and_are_avoided() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [0.0, math.log(2), 0.0]])
    assert find_targets(logits, torch.tensor([0, 2])).tolist() == [1, 1]
    loss = avoidance(logits[1:], torch.tensor([1]))
    assert loss.item() == pytest.approx(-math.log(1.0001 - 0.5))


def test_npd_weakens_a_backdoor_and_its_checkpoint_has_the_layer() -> None:
    done = defended(BADNETS, {"name": "npd", "clean_ratio": 0.2, "warm_up_steps": 50, "steps": 200})
    assert number(done, "undefended", "attack_success_rate") > 0.95
    # On seeds 0 to 4 it is 0.11 to 0.64, at an accuracy of at least 0.87.
    assert number(done, "npd", "attack_success_rate") < 0.85
    assert number(done, "npd", "clean_accuracy") > 0.8
    tensors = load(done.files["seed-0/npd/model.safetensors"])
    before = load(done.files["seed-0/undefended/model.safetensors"])
    assert all(torch.equal(tensors[f"network.{name}"], tensor) for name, tensor in before.items())
    assert isinstance(load_model(SmallCnn(), DIGITS, tensors), PolarizedNetwork)
