"""Blended injection (Chen et al. 2017): a faint pattern over the whole image, relabelled to the target."""

import torch
from torch import Tensor

from app.specs.attack import Blend
from worker.lab.attacks.base import Attack, State, Trigger
from worker.lab.compute import generator


class BlendAttack(Attack[Blend]):
    """``(1 - alpha) x + alpha pattern``, rounded; the pattern is uniform noise drawn from ``pattern_seed``."""

    def pattern(self) -> Tensor:
        """uint8 ``[C, H, W]``."""
        shape = (self.facts.channels, self.facts.height, self.facts.width)
        drawn = generator(torch.device("cpu"), "blend pattern", self.spec.pattern_seed)
        return torch.randint(256, shape, generator=drawn, dtype=torch.uint8)

    def trigger(self, state: State) -> Trigger:
        alpha, pattern = self.spec.alpha, self.pattern()

        def blend(images: Tensor) -> Tensor:
            mixed = (1 - alpha) * images.float() + alpha * pattern.to(images.device)
            return mixed.round().to(torch.uint8)

        return blend
