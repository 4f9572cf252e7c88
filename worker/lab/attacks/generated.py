"""Parts of attacks whose trigger a network makes: the generator, and its training beside a classifier."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from worker.lab.attacks.base import State
from worker.lab.compute import seeded_global_generator
from worker.lab.networks import Network
from worker.lab.training import Recipe

Module = TypeVar("Module", bound=nn.Module)


class ClassifierWithGenerator(Network):
    """The classifier and the generator, trained jointly; its forward pass is the classifier's."""

    def __init__(self, classifier: Network, generator: nn.Module) -> None:
        nn.Module.__init__(self)
        self.classifier = classifier
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(x)
        return logits


class CombinedOptimizer(torch.optim.Optimizer):
    """Several optimizers of disjoint parameters, stepped together at the same learning rate, times ``factors``."""

    def __init__(self, *parts: torch.optim.Optimizer, factors: Sequence[float] = ()) -> None:
        super().__init__([p for part in parts for group in part.param_groups for p in group["params"]], {})
        self.parts = parts
        self.factors = factors or [1.0] * len(parts)
        self.param_groups = [group for part in parts for group in part.param_groups]
        self.state = defaultdict(dict)
        for part in parts:
            part.state = self.state

    def step(self, closure: Any = None) -> Any:
        loss = closure()
        for part, factor in zip(self.parts, self.factors, strict=True):
            for group in part.param_groups:
                group["lr"] *= factor  # the training loop sets it before every step
            part.step()
        return loss


def make_adam(parameters: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=recipe.learning_rate, betas=(0.5, 0.9))


def make_seeded(make: Callable[[], Module], purpose: str, seed: int) -> Module:
    """A new network; its weights follow from purpose and seed."""
    with seeded_global_generator(torch.device("cpu"), "weights", purpose, seed):
        return make()


def load_frozen(network: Module, weights: State, device: torch.device) -> Module:
    """The network with these weights, frozen, in evaluation mode, on ``device``."""
    network.load_state_dict(weights)
    return network.to(device).eval().requires_grad_(False)
