"""A smooth additive pattern in the range of the low-frequency trigger (Zeng et al. 2021, section 5)."""

import math

import torch
from torch import Tensor

from app.specs.attack import LowFrequency
from worker.lab.attacks.base import Attack, State, Trigger, to_uint8
from worker.lab.compute import seeded_generator


def cosine_basis(length: int, waves: int) -> Tensor:
    """The first ``waves`` basis functions ``cos(pi u (x + 1/2) / length)`` of the discrete cosine transform, float64
    ``[waves, length]``."""
    wave, position = torch.arange(waves, dtype=torch.float64), torch.arange(length, dtype=torch.float64)
    return torch.cos(math.pi / length * wave[:, None] * (position + 0.5))


class LowFrequencyAttack(Attack[LowFrequency]):
    """A sum of the lowest cosine waves but the constant one, with normal weights, scaled to 0 to ``amplitude``."""

    def pattern(self) -> Tensor:
        """Float ``[C, H, W]``; its smallest value is 0 and its largest ``amplitude``."""
        waves = self.spec.waves
        generator = seeded_generator(torch.device("cpu"), "low-frequency pattern", self.spec.pattern_seed)
        weights = torch.randn((self.facts.channels, waves, waves), generator=generator, dtype=torch.float64)
        weights[:, 0, 0] = 0  # the constant wave only changes the brightness
        rows, columns = cosine_basis(self.facts.height, waves), cosine_basis(self.facts.width, waves)
        pattern = rows.T @ weights @ columns
        # Scaled as the authors scale their smoothed perturbation (gauss_smooth.py, normalization).
        span = pattern.max() - pattern.min()
        return ((pattern - pattern.min()) / span * self.spec.amplitude).float()

    def trigger(self, state: State) -> Trigger:
        pattern = self.pattern()

        def add(images: Tensor) -> Tensor:
            return to_uint8(images.float().add_(pattern.to(images.device)))

        return add
