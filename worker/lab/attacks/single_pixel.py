"""Single pixel (Gu et al. 2017, section 4.1; Tran et al. 2018): one pixel is set to one value."""

import torch
from torch import Tensor

from app.specs.attack import SinglePixel
from worker.lab.attacks.base import Attack, State, Trigger


class SinglePixelAttack(Attack[SinglePixel]):
    """The pixel at ``row`` and ``column``, by default in the center, is ``value``, which may differ by channel."""

    def trigger(self, state: State) -> Trigger:
        row = self.facts.height // 2 if self.spec.row is None else self.spec.row
        column = self.facts.width // 2 if self.spec.column is None else self.spec.column
        value = torch.tensor(self.spec.values(self.facts.channels), dtype=torch.uint8)

        def stamp(images: Tensor) -> Tensor:
            images = images.clone()
            images[:, :, row, column] = value.to(images.device)
            return images

        return stamp
