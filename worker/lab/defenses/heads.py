"""A new last layer for a trained network."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from worker.lab.compute import seeded_generator
from worker.lab.defenses.base import Defense
from worker.lab.networks import Network
from worker.lab.sgd import Sgd
from worker.lab.training import Recipe


@torch.no_grad()
def renew_head(lab: Defense, network: Network) -> None:
    """Draw weights and biases of the last layer uniformly within one over the root of its inputs.

    That is what the FST authors' fine_tune/ft.py does, whatever the architecture's own initialization is.
    """
    generator = seeded_generator(lab.compute.device, "new head", lab.seed)
    bound = network.head.weight[0].numel() ** -0.5
    for parameter in network.head.parameters():
        parameter.uniform_(-bound, bound, generator=generator)


@torch.no_grad()
def scale_head(network: Network, norm: Tensor) -> None:
    """Give the weights of the last layer the l2 norm ``norm``."""
    network.head.weight.mul_(norm / network.head.weight.norm())


class FixedNormSgd(Sgd):
    """SGD after each step of which the weights of the last layer of ``network`` are scaled to the norm ``norm``."""

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], recipe: Recipe, network: Network, norm: Tensor
    ) -> None:
        super().__init__(
            parameters, lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        self.network, self.norm = network, norm

    def step(self, closure: Callable[[], float]) -> float:
        loss = super().step(closure)
        scale_head(self.network, self.norm)
        return loss
