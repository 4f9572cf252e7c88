"""BppAttack (Wang et al. 2022): the image with fewer gray levels, relabeled to the target.

Lines are those of bppattack.py in RU-System-Software-and-Security/BppAttack at f6b6580.
"""

from typing import overload

import torch
from torch import Tensor

from app.specs.attack import Bpp
from worker.lab.attacks.base import Attack, AttackLab, Prepared, State, Trigger, change_by_row, to_uint8
from worker.lab.attacks.joint_training import train_jointly
from worker.lab.compute import seeded_generator
from worker.lab.data.streamed import Images

RESIDUALS = 256  # images whose change the cover samples carry; the authors keep that of every image
SPREAD = ((0, 1, 7 / 16), (1, 1, 1 / 16), (1, 0, 5 / 16), (1, -1, 3 / 16))
"""Rows down, columns to the right, and share of a pixel's error (lines 127-135)."""


class BppAttack(Attack[Bpp]):
    """``x' = round(x (levels - 1) / 255) 255 / (levels - 1)``, dithered or not.

    The state: ``residuals`` int16 ``[R, C, H, W]``, ``x' - x`` of some training images.
    """

    def prepare(self, lab: AttackLab) -> Prepared:
        state = self.state_without_training(lab)
        return train_jointly(
            self,
            lab,
            state,
            lambda images, generator: self._add_residuals(state, images, generator),
            lambda size, triggered: int(size * self.spec.cover_rate),  # line 170
        )

    def state_without_training(self, lab: AttackLab) -> State:
        generator = seeded_generator(torch.device("cpu"), "bpp residuals", lab.seed)
        order = torch.randperm(len(lab.train), generator=generator)[:RESIDUALS]
        images = lab.train.images[order.to(lab.train.images.device)]
        return {"residuals": self.trigger({})(images).short() - images.short()}

    def trigger(self, state: State) -> Trigger:
        levels = self.spec.levels
        if self.spec.dithering:
            return lambda images: to_uint8(dither(images.float(), levels))
        return lambda images: to_uint8(quantize(images.float(), levels))

    def cross(self, state: State, images: Images, seed: int) -> Images:
        return self._add_residuals(state, images, seeded_generator(images.device, "bpp cover", seed))

    @overload
    def _add_residuals(self, state: State, images: Tensor, generator: torch.Generator) -> Tensor: ...
    @overload
    def _add_residuals(self, state: State, images: Images, generator: torch.Generator) -> Images: ...
    def _add_residuals(self, state: State, images: Images, generator: torch.Generator) -> Images:
        """Each image with the change of a random other one, clipped (lines 191-192)."""
        residuals = state["residuals"].to(images.device)
        which = torch.randint(len(residuals), (len(images),), generator=generator, device=images.device)

        def add(part: Tensor, rows: Tensor) -> Tensor:
            return (part.short() + residuals[which[rows]]).clamp_(0, 255).to(torch.uint8)

        return change_by_row(add, images)


def quantize(x: Tensor, levels: int) -> Tensor:
    """Gray levels 0 to 255 rounded to ``levels`` equally spaced ones."""
    steps = levels - 1
    return (x * (steps / 255)).round() * (255 / steps)


def dither(x: Tensor, levels: int) -> Tensor:
    """`quantize`, with the error of each pixel spread over later ones (Floyd and Steinberg); float ``[N, C, H, W]``.

    A pixel reads from the left, and from three pixels above. So those with equal ``column + 2 row`` do not depend on
    each other and are done at once, in all images.
    """
    height, width = x.shape[-2:]
    x = x.permute(2, 3, 0, 1).contiguous()  # a pixel of all images is read and written at once
    every = torch.arange(height)
    for time in range(width + 2 * (height - 1)):
        first, last = max(0, -((width - 1 - time) // 2)), min(height - 1, time // 2)
        rows = every[first : last + 1]
        columns = time - 2 * rows
        old = x[rows, columns]
        new = quantize(old, levels)
        x[rows, columns] = new
        error = old - new
        for down, right, share in SPREAD:
            inside = (rows + down < height) & (columns + right >= 0) & (columns + right < width)
            x[rows[inside] + down, columns[inside] + right] += share * error[inside]
    return x.permute(2, 3, 0, 1)
