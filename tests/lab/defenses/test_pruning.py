"""Repairs that prune neurons which stand out in their layer, against values computed by hand."""

import pytest
import torch
from torch import Tensor, nn

from tests.lab.defenses.cases import BADNETS, defended, number
from worker.lab.defenses.clp import find_normalized_convolutions, lipschitz_bounds
from worker.lab.defenses.neurons import prune_outliers
from worker.lab.networks import Network


class Block(Network):
    """A residual block: ``second`` reads the output of a convolution, ``first`` and ``last`` read sums."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__(2)
        self.first, self.second, self.last = (nn.BatchNorm2d(channels) for _ in range(3))
        self.conv = nn.Conv2d(2, channels, (1, 2), bias=False)
        self.head = nn.Linear(channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.conv(self.first(x)))
        logits: Tensor = self.head(self.last(y + x[..., 1:]).mean((2, 3)))
        return logits


def test_a_bound_is_the_spectral_norm_of_the_kernel_times_the_scale_of_the_normalization() -> None:
    network = Block().eval()
    with torch.no_grad():
        network.conv.weight.copy_(torch.tensor([[[[3.0, 0]], [[0, 1]]], [[[3, 3]], [[4, 4]]]]))
        network.second.weight.copy_(torch.tensor([2.0, -1.0]))
        network.second.running_var = torch.tensor([4.0, 25.0]) - network.second.eps
    x = torch.zeros(1, 2, 4, 4)
    assert find_normalized_convolutions(network, x) == [("conv", "second")]
    # Singular values 3 and 1, scaled by 2 / 2; and (3, 4) twice, of norm 5 sqrt(2), scaled by 1 / 5.
    assert lipschitz_bounds(network, "conv", "second").tolist() == pytest.approx([3.0, 2**0.5])


def test_neurons_that_stand_out_lose_scale_and_shift() -> None:
    network = Block(12)
    nn.init.ones_(network.second.bias)
    scores = torch.ones(12)
    scores[7] = 2.0  # 3.2 deviations above the mean
    assert prune_outliers(network, {"second": scores}, 3.3) == 0
    assert prune_outliers(network, {"second": scores}, 3.0) == 1
    for parameter in (network.second.weight, network.second.bias):
        assert (parameter == 0).nonzero().flatten().tolist() == [7]


def test_clp_removes_a_backdoor_without_any_image() -> None:
    """At a third of the threshold of its source no neuron of this small network is kept in vain: see the guide."""
    done = defended(BADNETS, {"name": "clp", "deviations": 1.5}, {"name": "clp", "arm": "authors"})
    assert number(done, "undefended", "attack_success_rate") > 0.95
    assert number(done, "clp", "attack_success_rate") < 0.2
    assert number(done, "clp", "clean_accuracy") > 0.6
    assert any("none stands out" in warning for warning in done.warnings)
    assert number(done, "authors", "clean_accuracy") == number(done, "undefended", "clean_accuracy")
