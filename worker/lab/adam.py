"""Adam without torch's compiler, whose import takes a second and 70 MB."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

SMALLEST = 1e-8  # torch's default


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1), with the update of `torch.optim.Adam`.

    ``state`` holds its moments and its number of steps for each parameter, under names that begin with ``prefix``, so
    that two of them can share a state that is checkpointed.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        state: defaultdict[Tensor, dict[str, Tensor]] | None = None,
        prefix: str = "",
    ) -> None:
        self.parameters, self.rate, self.betas = list(parameters), rate, betas
        self.state: defaultdict[Tensor, dict[str, Tensor]] = defaultdict(dict) if state is None else state
        self.prefix = prefix

    @torch.no_grad()
    def descend(self, gradients: Sequence[Tensor | None]) -> None:
        """One step along the gradients, one for each parameter; None leaves it as it is."""
        first, second = self.betas
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if gradient is None:
                continue
            state = self.state[parameter]
            mean, square, count = (f"{self.prefix}{name}" for name in ("mean", "square", "count"))
            if mean not in state:
                state |= {mean: torch.zeros_like(parameter), square: torch.zeros_like(parameter)}
                state[count] = torch.tensor(0.0)
            state[count] += 1
            steps = state[count].item()
            state[mean].lerp_(gradient, 1 - first)
            state[square].mul_(second).addcmul_(gradient, gradient, value=1 - second)
            scale = (state[square] / (1 - second**steps)).sqrt_().add_(SMALLEST)
            parameter.addcdiv_(state[mean], scale, value=-self.rate / (1 - first**steps))
