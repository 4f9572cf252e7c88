"""BadNets (Gu et al. 2017): a small patch in a corner, on images of any class, relabelled to the target."""

import torch
from torch import Tensor

from app.specs.attack import BadNets
from worker.lab.attacks.base import Attack, State, Trigger


class BadNetsAttack(Attack[BadNets]):
    """A square of ``size`` pixels, ``margin`` away from the edges, mixed in with ``opacity``."""

    def patch(self) -> Tensor:
        """The patch, uint8 ``[size, size]``: white, or a checkerboard whose corners are white."""
        row, column = torch.meshgrid(
            torch.arange(self.spec.size), torch.arange(self.spec.size), indexing="ij"
        )
        white = (
            (row + column) % 2 == 0
            if self.spec.pattern == "checkerboard"
            else torch.ones_like(row, dtype=torch.bool)
        )
        return white.to(torch.uint8) * 255

    def corner(self) -> tuple[int, int]:
        """Row and column of the patch's top left pixel."""
        size, margin = self.spec.size, self.spec.margin
        height, width = self.facts.height, self.facts.width
        if self.spec.position == "center":
            return (height - size) // 2, (width - size) // 2
        vertical, horizontal = self.spec.position.split("_")
        return (
            margin if vertical == "top" else height - size - margin,
            margin if horizontal == "left" else width - size - margin,
        )

    def trigger(self, state: State) -> Trigger:
        patch, (top, left), size, opacity = self.patch(), self.corner(), self.spec.size, self.spec.opacity

        def stamp(images: Tensor) -> Tensor:
            images = images.clone()
            window = images[:, :, top : top + size, left : left + size]
            mixed = (1 - opacity) * window.float() + opacity * patch.to(images.device)
            window.copy_(mixed.round().to(torch.uint8))
            return images

        return stamp
