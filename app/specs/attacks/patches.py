"""Attacks whose trigger is small and sits at one place."""

from typing import Literal

from app.specs.attacks.base import DirtyLabelAttack, Position, PreparationStage, SurrogateAttack
from app.specs.base import field


class BadNets(DirtyLabelAttack):
    """BadNets (Gu et al., 2017): a small opaque patch in a corner, dirty label."""

    name: Literal["badnets"] = "badnets"
    pattern: Literal["checkerboard", "white"] = field(
        "checkerboard",
        "What the patch shows: alternating black and white pixels, or all white.",
        source="Gu et al. 2017, section 4",
    )
    size: int = field(3, "Side of the square patch.", unit="pixels", source="Gu et al. 2017", ge=1, le=224)
    position: Position = field("bottom_right", "Where the patch sits.", source="Gu et al. 2017")
    margin: int = field(0, "Distance of the patch from the image's edges.", unit="pixels", ge=0, le=112)
    opacity: float = field(
        1.0, "1 replaces the pixels, less blends the patch into them.", unit="fraction", gt=0, le=1
    )


class SinglePixel(DirtyLabelAttack):
    """A single pixel set to one value (Tran et al., 2018), dirty label."""

    name: Literal["single_pixel"] = "single_pixel"
    row: int = field(
        -2,
        "The pixel's row from the top; a negative one counts from the bottom, -1 being the last.",
        unit="pixels",
        source="Gu et al. 2017, section 4.1 (bottom right)",
        ge=-224,
        le=223,
    )
    column: int = field(
        -2,
        "The pixel's column from the left; a negative one counts from the right.",
        unit="pixels",
        source="Gu et al. 2017, section 4.1 (bottom right)",
        ge=-224,
        le=223,
    )
    value: int = field(
        255,
        "What the pixel is set to, in every channel.",
        unit="gray level (0-255)",
        source="Gu et al. 2017, section 4.1",
        ge=0,
        le=255,
    )


class Trojan(DirtyLabelAttack, SurrogateAttack):
    """Trojan patch (Liu et al., 2018): a patch tuned to drive chosen neurons of a trained model, dirty label.

    The attacker trains a model on the clean set, takes the neurons before its last layer that weigh most in it,
    and tunes the patch by gradient ascent until they fire on clean images that carry it.
    """

    name: Literal["trojan"] = "trojan"
    size: int = field(3, "Side of the square patch.", unit="pixels", ge=1, le=224)
    position: Position = field("bottom_right", "Where the patch sits.", source="Liu et al. 2018")
    margin: int = field(0, "Distance of the patch from the image's edges.", unit="pixels", ge=0, le=112)
    patch_neurons: int = field(
        2, "How many neurons the patch drives.", unit="neurons", source="public benchmark code", ge=1, le=64
    )
    patch_steps: int = field(
        1000, "Gradient steps on the patch.", unit="steps", source="public benchmark code", ge=1, le=100_000
    )
    patch_activation: float = field(
        100.0,
        "The activation that the neurons are driven towards.",
        source="chosen here: far above what a network without the patch reaches",
        gt=0,
        le=1e6,
    )
    patch_learning_rate: float = field(
        0.015,
        "Adam's learning rate on the patch, whose pixels lie in [0, 1].",
        source="chosen here",
        gt=0,
        le=1,
    )

    def stages(self) -> list[PreparationStage]:
        patch = self.part("patch_") | {"size": self.size, "position": self.position, "margin": self.margin}
        return [self.surrogate_stage(), PreparationStage("trigger", patch, 1)]
