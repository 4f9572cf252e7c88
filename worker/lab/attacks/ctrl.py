"""CTRL (Li et al. 2023): two frequencies of the chroma are raised in target-class images; labels stay.

The steps are those of utils/frequency.py, Poison_Frequency_Diff, in meet-cjli/CTRL at e3d26f0, except that values are
rounded and clipped to bytes here, where a cast cuts them and wraps around there.
"""

import torch
from torch import Tensor

from app.specs.attack import Ctrl
from worker.lab.attacks.base import Attack, State, Trigger, to_uint8
from worker.lab.attacks.ftrojan import make_wave_pattern

FROM_CHROMA = (1.14, -0.396 - 0.581, 2.029)
"""What one unit of U and V together adds to red, green and blue (kornia.color.yuv_to_rgb, which the authors use)."""


class CtrlAttack(Attack[Ctrl]):
    """``x + magnitude (1.14, -0.977, 2.029) p``, since the transforms to YUV and to frequencies are linear."""

    def training_trigger(self, state: State) -> Trigger:
        return self._adding(self.spec.magnitude)

    def trigger(self, state: State) -> Trigger:
        return self._adding(self.spec.test_magnitude or self.spec.magnitude)

    def _adding(self, magnitude: float) -> Trigger:
        colors = torch.tensor(FROM_CHROMA if self.facts.channels == 3 else [1.0] * self.facts.channels)
        pattern = colors[:, None, None] * make_wave_pattern(self.spec, self.facts, magnitude)

        def add(images: Tensor) -> Tensor:
            return to_uint8(images.float().add_(pattern.to(images.device)))

        return add
