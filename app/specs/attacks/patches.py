"""Attacks with a small trigger at a fixed position."""

from typing import Literal

from app.specs.attacks.base import DirtyLabelAttack, Position, PreparationStage, SurrogateAttack
from app.specs.base import field


class BadNets(DirtyLabelAttack):
    """BadNets (Gu et al., 2017): a small opaque patch in a corner, dirty label."""

    name: Literal["badnets"] = "badnets"
    pattern: Literal["checkerboard", "white"] = field(
        "checkerboard",
        "Pattern of the patch: alternating black and white pixels, or all white.",
        source="Gu et al. 2017, section 4",
    )
    size: int = field(3, "Side of the square patch.", unit="pixels", source="Gu et al. 2017", ge=1, le=224)
    position: Position = field("bottom_right", "Position of the patch.", source="Gu et al. 2017")
    margin: int = field(0, "Distance of the patch from the image's edges.", unit="pixels", ge=0, le=112)
    opacity: float = field(
        1.0,
        "Opacity of the patch. 1: the patch replaces the pixels; below 1: it is blended with them.",
        unit="fraction",
        gt=0,
        le=1,
    )


class SinglePixel(DirtyLabelAttack):
    """Single pixel (Tran et al., 2018): one pixel is set to a fixed value, dirty label."""

    name: Literal["single_pixel"] = "single_pixel"
    row: int = field(
        -2,
        "Row of the pixel from the top. Negative: from the bottom; -1 is the last row.",
        unit="pixels",
        source="Gu et al. 2017, section 4.1 (bottom right)",
        ge=-224,
        le=223,
    )
    column: int = field(
        -2,
        "Column of the pixel from the left. Negative: from the right; -1 is the last column.",
        unit="pixels",
        source="Gu et al. 2017, section 4.1 (bottom right)",
        ge=-224,
        le=223,
    )
    value: int = field(
        255,
        "Value of the pixel in every channel.",
        unit="gray level (0-255)",
        source="Gu et al. 2017, section 4.1",
        ge=0,
        le=255,
    )


class Trojan(DirtyLabelAttack, SurrogateAttack):
    """Trojan patch (Liu et al., 2018): a patch optimized to activate chosen neurons of a surrogate, dirty label.

    The neurons are those before the last layer with the largest weights in it. The patch is optimized by gradient
    descent until clean images with the patch activate them strongly.
    """

    name: Literal["trojan"] = "trojan"
    size: int = field(3, "Side of the square patch.", unit="pixels", ge=1, le=224)
    position: Position = field("bottom_right", "Position of the patch.", source="Liu et al. 2018")
    margin: int = field(0, "Distance of the patch from the image's edges.", unit="pixels", ge=0, le=112)
    patch_neurons: int = field(
        2,
        "Number of neurons that the patch activates.",
        unit="neurons",
        source="public benchmark code",
        ge=1,
        le=64,
    )
    patch_steps: int = field(
        1000, "Gradient steps on the patch.", unit="steps", source="public benchmark code", ge=1, le=100_000
    )
    patch_activation: float = field(
        100.0,
        "Target activation of the neurons.",
        source="chosen here: far above what a network without the patch reaches",
        gt=0,
        le=1e6,
    )
    patch_learning_rate: float = field(
        0.015,
        "Learning rate of Adam for the patch, on pixels in [0, 1].",
        source="chosen here",
        gt=0,
        le=1,
    )

    def stages(self) -> list[PreparationStage]:
        patch = self.fields_with("patch_") | {
            "size": self.size,
            "position": self.position,
            "margin": self.margin,
        }
        return [self.surrogate_stage(), PreparationStage("trigger", patch, 1)]
