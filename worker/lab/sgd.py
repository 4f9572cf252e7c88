"""Stochastic gradient descent without torch's compiler."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Optimizer(Protocol):
    """What the training loop needs of `torch.optim.Optimizer`."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...
    @property
    def state(self) -> Any: ...
    def zero_grad(self, set_to_none: bool = True) -> None: ...
    def step(self, closure: Any) -> Any: ...


class Sgd:
    """SGD with momentum, bit for bit as `torch.optim.SGD`.

    Each of torch's own optimizers imports the compiler: a second at the start of every experiment, and 70 MB.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": list(parameters), "lr": lr}]
        self.state: defaultdict[Tensor, dict[str, Tensor]] = defaultdict(dict)
        self.momentum, self.weight_decay, self.nesterov = momentum, weight_decay, nesterov

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None

    def step(self, closure: Callable[[], float]) -> float:
        """One step along the gradients that ``closure`` computes; returns its loss."""
        loss = closure()
        trained = [parameter for parameter in self.param_groups[0]["params"] if parameter.grad is not None]
        if trained:
            with torch.no_grad():
                self._descend(trained, [parameter.grad for parameter in trained])
        return loss

    def _descend(self, trained: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        if self.weight_decay:
            gradients = torch._foreach_add(list(gradients), list(trained), alpha=self.weight_decay)
        if self.momentum:
            velocities = self._accelerate(trained, gradients)
            gradients = (
                torch._foreach_add(list(gradients), velocities, alpha=self.momentum)
                if self.nesterov
                else velocities
            )
        torch._foreach_add_(list(trained), list(gradients), alpha=-self.param_groups[0]["lr"])

    def _accelerate(self, trained: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        """The new velocities, which begin with a parameter's first gradient."""
        pairs = [(self.state[p], gradient) for p, gradient in zip(trained, gradients, strict=True)]
        if moving := [(state["momentum_buffer"], gradient) for state, gradient in pairs if state]:
            velocities, added = map(list, zip(*moving, strict=True))
            torch._foreach_mul_(velocities, self.momentum)
            torch._foreach_add_(velocities, added)
        for state, gradient in pairs:
            if not state:
                state["momentum_buffer"] = gradient.clone()
        return [state["momentum_buffer"] for state, _ in pairs]
