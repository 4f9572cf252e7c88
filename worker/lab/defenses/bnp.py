"""BN statistics pruning (Zheng et al. 2022b, *Pre-activation Distributions Expose Backdoor Neurons*).

The running statistics of a batch normalization are those of the poisoned training set. On clean images the input of a
backdoor neuron has others, so the divergence of the two normal distributions is large. No label is used.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from app.specs.defenses.pruning import Bnp
from worker.lab.compute import Compute
from worker.lab.data.streamed import Images
from worker.lab.defenses.base import RepairDefense
from worker.lab.defenses.neurons import prune_outliers, report_outliers, watch_pre_activations
from worker.lab.defenses.repair import copy_network, finish_repair, load_network
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun


@dataclass
class Moments:
    """Sums over images and positions, from which mean and unbiased variance of every channel ``[C]`` follow."""

    count: int
    total: Tensor
    squares: Tensor

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def variance(self) -> Tensor:
        return (self.squares - self.total.square() / self.count) / (self.count - 1)


def run(spec: Bnp, lab: RepairDefense) -> Network:
    """Prune the neurons whose statistics differ most; nothing is trained."""

    def prune(stage: StageRun) -> Outcome:
        network = copy_network(lab, lab.victim)
        scores = statistic_divergences(network, lab.clean.images, lab.compute)
        report_outliers(lab, stage, prune_outliers(network, scores, spec.deviations), scores)
        return finish_repair(lab, stage, network, lab.clean)

    return load_network(lab, lab.stage("repair", prune))


def statistic_divergences(network: Network, images: Images, compute: Compute) -> dict[str, Tensor]:
    """By the name of each batch normalization the divergence ``[C]`` of clean from running statistics.

    ``KL(N1, N2) = log(s2 / s1) + (s1^2 + (m1 - m2)^2) / (2 s2^2) - 1 / 2`` (authors' defense.py, BNP), N1 on the images
    and N2 the running one. BackdoorBench counts the logarithm twice (defense/bnp.py).
    """
    moments: dict[str, Moments] = {}

    def add(name: str, x: Tensor) -> None:
        x = x.double().transpose(0, 1).flatten(1)
        seen = moments.get(name, Moments(0, torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0])))
        moments[name] = Moments(
            seen.count + x.shape[1], seen.total + x.sum(1), seen.squares + x.square().sum(1)
        )

    watch_pre_activations(network, images, compute, add)
    scores = {}
    for name, clean in moments.items():
        layer = network.get_submodule(name)
        assert isinstance(layer, nn.BatchNorm2d)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        # A channel that is constant has variance zero, which the smallest variance of a normalization stands for.
        variance, running = clean.variance.clamp(min=layer.eps), layer.running_var.clamp(min=layer.eps)
        shift = (clean.mean - layer.running_mean).square()
        scores[name] = ((running / variance).log() + (variance + shift) / running - 1) / 2
    return scores
