"""An attack in one file: BppAttack (Wang, Zhai and Ma, CVPR 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from app.specs.attacks.base import DirtyLabelAttack
from app.specs.base import field

if TYPE_CHECKING:
    from torch import Tensor

    from worker.lab.attacks import Attack, State, Trigger


class Bpp(DirtyLabelAttack):
    """BppAttack (Wang et al., 2022): the image quantized to fewer gray levels, dirty label.

    The authors also dither, and train the victim with a contrastive loss; both are left out here.
    """

    name: Literal["bpp"] = "bpp"
    levels: int = field(
        8, "Number of values per channel.", unit="gray levels", source="the authors' code", ge=2, le=128
    )

    @classmethod
    def implementation(cls) -> type[Attack[Bpp]]:
        from worker.lab.attacks import Attack, to_uint8  # only workers call this: the API has no torch

        class BppAttack(Attack[Bpp]):
            def trigger(self, state: State) -> Trigger:
                steps = self.spec.levels - 1

                def stamp(images: Tensor) -> Tensor:
                    return to_uint8((images.float() * (steps / 255)).round_() * (255 / steps))

                return stamp

        return BppAttack
