"""An attack in one file: an image with fewer gray levels (Wang, Zhai and Ma, CVPR 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from app.specs.attacks.base import DirtyLabelAttack
from app.specs.base import field

if TYPE_CHECKING:
    from torch import Tensor

    from worker.lab.attacks import Attack, State, Trigger


class Posterize(DirtyLabelAttack):
    """Posterized image (Wang et al., 2022): fewer gray levels, dirty label. The built-in `bpp` also dithers."""

    name: Literal["posterize"] = "posterize"
    levels: int = field(
        8, "Number of values per channel.", unit="gray levels", source="the authors' code", ge=2, le=128
    )

    @classmethod
    def implementation(cls) -> type[Attack[Posterize]]:
        from worker.lab.attacks import Attack, to_uint8  # only workers call this: the API has no torch

        class PosterizeAttack(Attack[Posterize]):
            def trigger(self, state: State) -> Trigger:
                steps = self.spec.levels - 1

                def stamp(images: Tensor) -> Tensor:
                    return to_uint8((images.float() * (steps / 255)).round_() * (255 / steps))

                return stamp

        return PosterizeAttack
