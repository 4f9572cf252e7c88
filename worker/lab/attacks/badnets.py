"""BadNets (Gu et al. 2017): a small patch in a corner, on images of any class, relabeled to the target."""

import torch
from torch import Tensor

from app.specs.attack import BadNets
from worker.lab.attacks.base import Attack, State, Trigger, to_uint8
from worker.lab.attacks.patches import checkerboard, patch_slices


class BadNetsAttack(Attack[BadNets]):
    """A square of ``size`` pixels, ``margin`` from the edges, blended in with ``opacity``."""

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
