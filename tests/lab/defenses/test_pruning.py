"""Repairs that prune neurons which stand out in their layer, against values computed by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

from app.specs.checks import find_problems
from app.specs.experiment import ExperimentSpec
from app.specs.facts import BUILT_IN
from tests.lab.defenses.cases import BADNETS, defended, number
from tests.lab.test_measuring import CPU
from worker.lab.defenses.bnp import statistic_divergences
from worker.lab.defenses.clp import find_normalized_convolutions, lipschitz_bounds
from worker.lab.defenses.ep import collect_peaks, histogram_entropy, standardize
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


class Normalized(Network):
    """The images themselves, normalized."""

    def __init__(self) -> None:
        super().__init__(1)
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.norm(x).flatten(1)
        return logits


def test_the_divergence_is_that_of_two_normal_distributions() -> None:
    network = Normalized()
    network.norm.running_mean, network.norm.running_var = torch.tensor([1.5]), torch.tensor([2.0])
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    scores = statistic_divergences(network, images, CPU)
    # Mean 0.5 and variance 0.5 on the images.
    expected = math.log(2 / 0.5) / 2 + (0.5 + 1.0) / (2 * 2) - 0.5
    assert scores["norm"].tolist() == pytest.approx([expected])


def test_entropy_is_of_the_largest_input_of_each_image() -> None:
    images = torch.tensor([[[[0, 51]]], [[[255, 0]]]], dtype=torch.uint8)
    assert collect_peaks(Normalized(), images, CPU)["norm"].flatten().tolist() == pytest.approx([0.2, 1.0])
    x = standardize(torch.tensor([[1.0, 3.0], [5.0, 5.0]]))
    assert x.flatten().tolist() == pytest.approx([-(2**-0.5), 2**-0.5, 0, 0])
    values = torch.tensor([[0.0, 0.0, 1.2, 1.2], [0.0, 0.3, 0.6, 1.2]])
    quarters = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert histogram_entropy(values, 0.5).tolist() == pytest.approx([math.log(2), quarters])


def test_ep_removes_a_backdoor_without_a_clean_image() -> None:
    done = defended(BADNETS, {"name": "ep", "deviations": 1.5})
    assert number(done, "undefended", "attack_success_rate") > 0.95
    assert number(done, "ep", "attack_success_rate") < 0.2
    assert number(done, "ep", "clean_accuracy") > 0.8


def test_repairs_that_prune_or_read_maps_are_refused_where_there_are_none() -> None:
    names = ("clp", "bnp", "ep", "rnp", "npd", "bti_dbf", "sau", "fst", "fe_tuning")
    vit = {"model": {"name": "torchvision", "architecture": "vit_b_16"}, "dataset": {"name": "cifar10"}}
    whole = ExperimentSpec.model_validate(vit | {"defenses": [{"name": name} for name in names]})
    refused = {str(problem.value): problem.allowed for problem in find_problems(whole, BUILT_IN["cifar10"])}
    for name in names[:4]:
        assert "does not need batch normalization" in refused.pop(name)
    for name in names[4:6]:
        assert "does not need feature maps of three resolutions" in refused.pop(name)
    assert not refused


def test_clp_removes_a_backdoor_without_any_image() -> None:
    """At half of its source's threshold, at which no neuron of this small network stands out."""
    done = defended(BADNETS, {"name": "clp", "deviations": 1.5}, {"name": "clp", "arm": "authors"})
    assert number(done, "undefended", "attack_success_rate") > 0.95
    assert number(done, "clp", "attack_success_rate") < 0.2
    assert number(done, "clp", "clean_accuracy") > 0.6
    assert any("none stands out" in warning for warning in done.warnings)
    assert number(done, "authors", "clean_accuracy") == number(done, "undefended", "clean_accuracy")
