"""Square patches, which several triggers use."""

from typing import TypeVar

import torch
from torch import Tensor

from app.specs.attacks.base import Position
from app.specs.attacks.patches import PatchAttack
from app.specs.facts import DatasetFacts
from worker.lab.attacks.base import Attack, State, Trigger, to_uint8

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


def patch_slices(position: Position, size: int, margin: int, facts: DatasetFacts) -> tuple[slice, slice]:
    """Rows and columns of a square of ``size`` pixels, ``margin`` from the edges."""
    if position == "center":
        top, left = (facts.height - size) // 2, (facts.width - size) // 2
    else:
        vertical, horizontal = position.split("_")
        top = margin if vertical == "top" else facts.height - size - margin
        left = margin if horizontal == "left" else facts.width - size - margin
    return slice(top, top + size), slice(left, left + size)


class PatchedAttack(Attack[PatchT]):
    """The trigger is a square of ``size`` pixels, ``margin`` from the edges, blended in with ``opacity``."""

    def patch(self) -> Tensor:
        """The patch, uint8 ``[size, size]``: white, or a `checkerboard`, the same at every position."""
        white = checkerboard(self.spec.size)
        if self.spec.pattern == "white":
            white = torch.ones_like(white)
        return white.to(torch.uint8) * 255

    def trigger(self, state: State) -> Trigger:
        patch, opacity = self.patch(), self.spec.opacity
        rows, columns = patch_slices(self.spec.position, self.spec.size, self.spec.margin, self.facts)

        def stamp(images: Tensor) -> Tensor:
            images = images.clone()
            window = images[:, :, rows, columns]
            window.copy_(to_uint8((1 - opacity) * window.float() + opacity * patch.to(images.device)))
            return images

        return stamp
