"""Clean-label attacks that craft their poison with a model of their own."""

from typing import Literal

from app.specs.attacks.base import CleanLabelAttack, Position, PreparationStage, SurrogateAttack
from app.specs.base import field


class CleanLabel(CleanLabelAttack, SurrogateAttack):
    """Label-consistent attack (Turner et al., 2019): perturb target-class images, then stamp a trigger on them.

    The perturbation (projected gradient ascent on the loss of the attacker's model) makes their own features hard
    to learn, so the victim learns the trigger. At test time the trigger alone is stamped.
    """

    name: Literal["clean_label"] = "clean_label"
    poisoning_rate: float = field(
        0.25,
        "Share of the target class (or of the training set, see rate_of) that is poisoned.",
        unit="fraction",
        source="public code of the attack",
        gt=0,
        le=1,
    )
    surrogate_adversarial: bool = field(
        True,
        "Train the attacker's model on adversarial examples, which makes the perturbations found with it "
        "carry over to other models.",
        source="Turner et al. 2019; Madry et al. 2018",
    )
    pgd_norm: Literal["l_inf", "l_2"] = field(
        "l_inf", "Norm that bounds the perturbation.", source="Turner et al. 2019"
    )
    pgd_epsilon: float = field(
        16.0,
        "Bound on the perturbation; the document shows 8, 16, 32 for l_inf and 300, 600, 1200 for l_2.",
        unit="gray levels (0-255)",
        source="Turner et al. 2019; the document, figure 1",
        gt=0,
        le=100_000,
    )
    pgd_steps: int = field(100, "Gradient steps.", unit="steps", source="Turner et al. 2019", ge=1, le=10_000)
    pgd_step_size: float | None = field(
        None,
        "Length of a step. Null: 1.5 for l_inf, 2.5 epsilon / steps for l_2.",
        unit="gray levels (0-255)",
        source="public code of the attack; Madry et al. 2018",
        gt=0,
        le=100_000,
    )
    corners: Literal["one", "four"] = field(
        "four",
        "The trigger in the bottom right corner, or in all four.",
        source="Turner et al. 2019",
    )
    size: int = field(
        3, "Side of the trigger's square.", unit="pixels", source="Turner et al. 2019", ge=1, le=112
    )
    amplitude: float = field(
        255.0,
        "What the checkerboard adds to its white and takes from its black pixels; 255 makes it opaque.",
        unit="gray levels (0-255)",
        source="Turner et al. 2019 (16, 32, 64, 255)",
        gt=0,
        le=255,
    )

    def stages(self) -> list[PreparationStage]:
        which = {"target_class": self.target_class, "rate": self.poisoning_rate, "of": self.rate_of}
        return [self.surrogate_stage(), PreparationStage("perturbations", which | self.part("pgd_"), 1)]


class HiddenTrigger(CleanLabelAttack, SurrogateAttack):
    """Hidden trigger (Saha et al., 2020): target-class images that look like themselves, with a trigger's features.

    Each poison is a target-class image moved, within epsilon, to where the attacker's model sees some other
    image with a patch. The patch is never shown before test time. The patch's colors are drawn from the seed.
    """

    name: Literal["hidden_trigger"] = "hidden_trigger"
    poisoning_rate: float = field(
        0.5,
        "Share of the target class (or of the training set, see rate_of) that is poisoned.",
        unit="fraction",
        source="Saha et al. 2020 (400 of 800 images of a class)",
        gt=0,
        le=1,
    )
    size: int | None = field(
        None,
        "Side of the square patch. Null: 30 pixels at a width of 224, in proportion elsewhere, at least 3.",
        unit="pixels",
        source="Saha et al. 2020",
        ge=1,
        le=224,
    )
    position: Position = field(
        "bottom_right", "Where the patch sits.", source="Saha et al. 2020 (random place)"
    )
    margin: int = field(0, "Distance of the patch from the image's edges.", unit="pixels", ge=0, le=112)
    craft_epsilon: float = field(
        16.0,
        "l_inf bound on the change of a poisoned image.",
        unit="gray levels (0-255)",
        source="Saha et al. 2020",
        gt=0,
        le=255,
    )
    craft_steps: int = field(
        1000,
        "Gradient steps.",
        unit="steps",
        source="Saha et al. 2020: 5000 at most, and fewer once the features agree",
        ge=1,
        le=100_000,
    )
    craft_learning_rate: float = field(
        0.01, "Length of a step on pixels in [0, 1].", source="Saha et al. 2020", gt=0, le=1
    )

    def stages(self) -> list[PreparationStage]:
        patch = {"size": self.size, "position": self.position, "margin": self.margin}
        which = {"target_class": self.target_class, "rate": self.poisoning_rate, "of": self.rate_of}
        return [
            self.surrogate_stage(),
            PreparationStage("poisons", which | patch | self.part("craft_"), 1),
        ]


class PoisonFrogs(CleanLabelAttack, SurrogateAttack):
    """Poison Frogs, feature collision (Shafahi et al., 2018): one test image is to be given the target class.

    There is no trigger. Each poison is a target-class image moved to where the attacker's model sees the one
    test image, which is faintly blended in as a watermark. Success is whether that image is given the target class
    (``target_image_hit``, 0 or 1; ``attack_success_rate`` is the same number).
    """

    name: Literal["poison_frogs"] = "poison_frogs"
    poisoning_rate: float = field(
        0.01,
        "Share of the target class (or of the training set, see rate_of) that is poisoned.",
        unit="fraction",
        source="Shafahi et al. 2018 (50 of CIFAR-10's 5,000)",
        gt=0,
        le=1,
    )
    target_image: int | None = field(
        None,
        "The test image to be misclassified, counted in the (sub)set used. Null: drawn from the seed.",
        ge=0,
    )
    watermark: float = field(
        0.3,
        "Opacity of the target image in each poison.",
        unit="fraction",
        source="Shafahi et al. 2018 (0.2 to 0.3)",
        ge=0,
        lt=1,
    )
    craft_similarity: float = field(
        0.25,
        "Weight of staying close to the image that a poison was made from (beta), relative to the ratio of the "
        "number of features squared to the number of input values squared.",
        source="Shafahi et al. 2018",
        ge=0,
        le=1e6,
    )
    craft_steps: int = field(
        100,
        "Steps of forward-backward splitting.",
        unit="steps",
        source="Shafahi et al. 2018",
        ge=1,
        le=100_000,
    )
    craft_learning_rate: float = field(
        0.01, "Length of a step on pixels in [0, 1].", source="chosen here", gt=0, le=1000
    )

    def stages(self) -> list[PreparationStage]:
        which = {"target_class": self.target_class, "rate": self.poisoning_rate, "of": self.rate_of}
        what = {"target_image": self.target_image, "watermark": self.watermark}
        return [self.surrogate_stage(), PreparationStage("poisons", which | what | self.part("craft_"), 1)]
