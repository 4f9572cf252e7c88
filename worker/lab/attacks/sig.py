"""SIG (Barni et al. 2019): a sinusoid added to images of the target class, labels untouched."""

import math

import torch
from torch import Tensor

from app.specs.attack import Sig
from worker.lab.attacks.base import Attack, State, Trigger, to_uint8


class SigAttack(Attack[Sig]):
    """``v(i, j) = amplitude sin(2 pi j frequency / m)`` for column j of m, counted from 1 (section 3 of the paper)."""

    def signal(self) -> Tensor:
        """Float ``[W]``: the same for every row and channel."""
        width = self.facts.width
        column = torch.arange(1, width + 1, dtype=torch.float64)
        return (self.spec.amplitude * torch.sin(2 * math.pi * column * self.spec.frequency / width)).float()

    def trigger(self, state: State) -> Trigger:
        signal = self.signal()

        def add(images: Tensor) -> Tensor:
            return to_uint8(images.float().add_(signal.to(images.device)))

        return add
