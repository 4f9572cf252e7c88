"""FTrojan (Wang et al. 2022): two frequencies of the image's chroma are raised, relabeled to the target.

The steps are those of BackdoorBench's utils/bd_img_transform/ftrojann.py, except that values beyond the range of a byte
are clipped here, where a cast wraps them around there, and rounded instead of cut.
"""

import torch
from torch import Tensor

from app.specs.attack import FTrojan
from app.specs.attacks.frequency import FrequencyAttack
from app.specs.facts import DatasetFacts
from worker.lab.attacks.base import Attack, State, Trigger, to_uint8
from worker.lab.attacks.low_frequency import cosine_basis

# Full-range YCrCb of OpenCV, which the reference converts to (cvtColor, COLOR_RGB2YCrCb).
LUMA = (0.299, 0.587, 0.114)
CR, CB, MIDDLE = 0.713, 0.564, 128


def to_chroma(rgb: Tensor) -> Tensor:
    """Float RGB ``[N, 3, H, W]`` in gray levels to Y, Cr, Cb, rounded and clipped to bytes."""
    red, green, blue = rgb.unbind(1)
    luma = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    parts = (luma, (red - luma) * CR + MIDDLE, (blue - luma) * CB + MIDDLE)
    return torch.stack(parts, 1).round_().clamp_(0, 255)


def from_chroma(converted: Tensor) -> Tensor:
    """Float Y, Cr, Cb ``[N, 3, H, W]``, rounded and clipped to bytes first, to RGB."""
    luma, cr, cb = converted.round().clamp_(0, 255).unbind(1)
    red, blue = luma + (cr - MIDDLE) / CR, luma + (cb - MIDDLE) / CB
    green = (luma - LUMA[0] * red - LUMA[2] * blue) / LUMA[1]
    return torch.stack((red, green, blue), 1)


def make_wave_pattern(spec: FrequencyAttack, facts: DatasetFacts, magnitude: float) -> Tensor:
    """Float ``[H, W]``: the inverse transform of windows that hold ``magnitude`` at the raised coefficients."""
    side = spec.window_side(facts)
    waves = cosine_basis(side, side) * (2 / side) ** 0.5  # orthonormal, as cv2.dct
    waves[0] /= 2**0.5
    raised = waves[list(spec.raised(facts))]
    window: Tensor = magnitude * (raised.T @ raised)
    return window.repeat(facts.height // side, facts.width // side).float()


class FTrojanAttack(Attack[FTrojan]):
    """The transform is linear, so raising coefficients adds the same pattern to every image."""

    def trigger(self, state: State) -> Trigger:
        pattern = make_wave_pattern(self.spec, self.facts, self.spec.magnitude)

        def raise_frequencies(images: Tensor) -> Tensor:
            added = pattern.to(images.device)
            if images.shape[1] != 3:
                return to_uint8(images.float() + added)
            converted = to_chroma(images.float())
            converted[:, 1:] += added
            return to_uint8(from_chroma(converted))

        return raise_frequencies
