"""Square patches, which several triggers use."""

import torch
from torch import Tensor

from app.specs.attacks.base import Position
from app.specs.facts import DatasetFacts


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
