"""Square patches, which several triggers use."""

from typing import TypeVar

import torch
from torch import Tensor

from app.specs.attacks.base import Position
from app.specs.attacks.patches import PatchAttack
from app.specs.facts import DatasetFacts
from worker.lab.attacks.base import Attack, State, Trigger, to_uint8
from worker.lab.attacks.patterns import decode_picture

PatchT = TypeVar("PatchT", bound=PatchAttack)


def checkerboard(size: int) -> Tensor:
    """bool ``[size, size]``: True is white. Pixels alternate, and the bottom right one is white.

    The published grid of 3 x 3 departs from this in its top left pixel, which is black (ABL, data_loader.py:327-339;
    MadryLab/label-consistent-backdoor-code, poison_attack.py:21-31)."""
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    white = (row + column) % 2 == 0
    if size == 3:
        white[0, 0] = False
    return white


def patch_slices(
    position: Position, size: int | tuple[int, int], margin: int, facts: DatasetFacts
) -> tuple[slice, slice]:
    """Rows and columns of a square of ``size`` pixels, or of a rectangle (height, width), ``margin`` from the edges."""
    height, width = (size, size) if isinstance(size, int) else size
    if position == "center":
        top, left = (facts.height - height) // 2, (facts.width - width) // 2
    else:
        vertical, horizontal = position.split("_")
        top = margin if vertical == "top" else facts.height - height - margin
        left = margin if horizontal == "left" else facts.width - width - margin
    return slice(top, top + height), slice(left, left + width)


class PatchedAttack(Attack[PatchT]):
    """The trigger is a square of ``size`` pixels or a picture, ``margin`` from the edges, put in with ``opacity``."""

    def patch(self) -> Tensor:
        """The patch, uint8 ``[size, size]``: white, or a `checkerboard`, the same at every position."""
        white = checkerboard(self.spec.size)
        if self.spec.pattern == "white":
            white = torch.ones_like(white)
        return white.to(torch.uint8) * 255

    def training_trigger(self, state: State) -> Trigger:
        return self._stamp(self.spec.pattern_png, "pattern_png", self.spec.opacity)

    def trigger(self, state: State) -> Trigger:
        opacity = self.spec.opacity if self.spec.test_opacity is None else self.spec.test_opacity
        if self.spec.test_pattern_png is not None:
            return self._stamp(self.spec.test_pattern_png, "test_pattern_png", opacity)
        return self._stamp(self.spec.pattern_png, "pattern_png", opacity)

    def _stamp(self, png: str | None, name: str, opacity: float) -> Trigger:
        """Stamps the picture ``png`` of the field ``name``, or else the patch, with ``opacity``."""
        patch: Tensor = self.patch()
        weight: Tensor | float = opacity
        if png is not None:
            patch, opaqueness = decode_picture(png, self.facts, name)
            weight = opacity * opaqueness
        height, width = patch.shape[-2:]
        rows, columns = patch_slices(self.spec.position, (height, width), self.spec.margin, self.facts)

        def stamp(images: Tensor) -> Tensor:
            images = images.clone()
            window = images[:, :, rows, columns]
            w = weight.to(images.device) if isinstance(weight, Tensor) else weight
            window.copy_(to_uint8((1 - w) * window.float() + w * patch.to(images.device)))
            return images

        return stamp
