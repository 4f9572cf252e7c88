"""Single pixel (Gu et al. 2017, section 4.1; Tran et al. 2018): one pixel is set to one value."""

from torch import Tensor

from app.specs.attack import SinglePixel
from worker.lab.attacks.base import Attack, State, Trigger


class SinglePixelAttack(Attack[SinglePixel]):
    """The pixel at ``row`` and ``column`` is ``value`` in every channel."""

    def trigger(self, state: State) -> Trigger:
        row, column, value = self.spec.row, self.spec.column, self.spec.value

        def stamp(images: Tensor) -> Tensor:
            images = images.clone()
            images[:, :, row, column] = value
            return images

        return stamp
