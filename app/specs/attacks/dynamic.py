"""Attacks whose trigger differs from image to image.

Both were published as attacks on the training itself. Here they end in an explicit poisoned set, so that every
defense that works during training can be tried on them.
"""

from typing import Literal

from app.specs.attacks.base import DirtyLabelAttack, PreparationStage
from app.specs.base import field

AUTHORS = "Nguyen and Tran 2020, published code"


class InputAware(DirtyLabelAttack):
    """Input-aware dynamic backdoor (Nguyen and Tran, 2020): a generator makes a trigger for each image, dirty label.

    First a network learns where a trigger goes, then another what it shows, together with a classifier; a trigger
    must differ between images and must not work on an image that it was not made for. Both networks are then
    frozen and the training set is poisoned with them. Cross samples carry another image's trigger and
    keep their label.
    """

    name: Literal["input_aware"] = "input_aware"
    cross_rate: float = field(
        0.1,
        "Share of the training set that carries another image's trigger and keeps its label.",
        unit="fraction",
        source=AUTHORS,
        gt=0,
        lt=1,
    )
    mask_density: float = field(
        0.032, "Mean of the mask beyond which it is penalized.", unit="fraction", source=AUTHORS, gt=0, le=1
    )
    mask_epochs: int = field(
        25, "Training of the mask network.", unit="epochs", source=AUTHORS, ge=1, le=1000
    )
    generator_epochs: int = field(
        60,
        "Training of generator and classifier together.",
        unit="epochs",
        source="chosen here; the authors train for 600",
        ge=1,
        le=5000,
    )
    diversity_weight: float = field(
        1.0, "Weight of the diversity loss (lambda_div).", source=AUTHORS, ge=0, le=1000
    )
    network_learning_rate: float = field(
        0.01,
        "Learning rate of Adam on mask network and generator, and of SGD on the classifier.",
        source=AUTHORS,
        gt=0,
        le=1,
    )

    @property
    def cross_share(self) -> float:
        return self.cross_rate

    def stages(self) -> list[PreparationStage]:
        mask = self.part("mask_", "diversity_weight", "network_learning_rate")
        generator = self.part("generator_", "cross_rate", "poisoning_rate", "label_mode")
        return [
            PreparationStage("mask", mask, self.mask_epochs),
            PreparationStage(
                "generator", generator | {"target_class": self.target_class}, 2 * self.generator_epochs
            ),
        ]


class WaNet(DirtyLabelAttack):
    """WaNet (Nguyen and Tran, 2021): the image is warped a little, dirty label.

    The warp is smooth, the same for all images, and drawn from the seed. Cross samples are warped another, random
    way and keep their label, so that only this one warp becomes the trigger.
    """

    name: Literal["wanet"] = "wanet"
    strength: float = field(
        0.5, "Strength of the warp (s).", source="Nguyen and Tran 2021, published code", gt=0, le=10
    )
    grid: int = field(
        4,
        "Side of the grid of control points (k).",
        unit="points",
        source="Nguyen and Tran 2021, published code",
        ge=2,
        le=64,
    )
    cross_ratio: float = field(
        2.0,
        "Randomly warped samples that keep their label, for each poisoned one; 0 is none.",
        source="Nguyen and Tran 2021, published code",
        ge=0,
        le=8,
    )

    @property
    def cross_share(self) -> float:
        return self.cross_ratio * self.poisoning_rate
