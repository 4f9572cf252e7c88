"""Clean-label attacks that craft poisoned images with a surrogate."""

from collections.abc import Iterator
from typing import Any, Literal

from app.specs.attacks.base import (
    RATE_OF,
    CleanLabelAttack,
    Position,
    PreparationStage,
    RateOf,
    SquarePatchAttack,
    SurrogateAttack,
)
from app.specs.base import Preset, field, preset_field
from app.specs.facts import DatasetFacts

HIDDEN_CODE = "github.com/UMBCvision/Hidden-Trigger-Backdoor-Attacks, generate_poison.py and cfg"
FROGS_CODE = (
    "github.com/ashafahi/inceptionv3-transferLearn-poison, util_one_shot_kill_attack.py and main_oneShot.py"
)

NARCISSUS_CODE = "github.com/ruoxi-jia-group/Narcissus, Narcissus.ipynb"

CONSISTENT_CODE = "github.com/MadryLab/label-consistent-backdoor-code, config.json and poison_attack.py"
CONSISTENT_BENCHMARK = "github.com/SCLBD/BackdoorBench, attack/lc.py and config/attack/lc"
CONSISTENT_PGD = "github.com/hkunzhe/label_consistent_attacks_pytorch, config/craft.yaml"
CONSISTENT_RATE = "chosen here; github.com/THUYimingLi/BackdoorBox, tests/test_LabelConsistent.py: 0.25"

_CONSISTENT_PRESETS = {
    "recommended": Preset(
        "the attack of the paper with four corners, which training with random flips and crops does not remove, and "
        "a quarter of the class.",
        f"{CONSISTENT_RATE}; Turner et al. 2019",
        {},
    ),
    "authors": Preset(
        "the configuration of the authors' code: every image of the class, perturbed within an l_2 norm of 300, and a "
        "single corner.",
        CONSISTENT_CODE,
        {"poisoning_rate": 1.0, "pgd_norm": "l_2", "pgd_epsilon": 300.0, "corners": "one"},
    ),
    "benchmark": Preset(
        "the configuration of BackdoorBench: a tenth of the training set, on CIFAR-10 every image of the class.",
        CONSISTENT_BENCHMARK,
        {"poisoning_rate": 1.0},
    ),
}

_HIDDEN_PRESETS = {
    "recommended": Preset(
        "the authors' attack with steps along the gradient's sign, whose length does not depend on the scale of the "
        "features, and fewer of them.",
        "chosen here",
        {},
    ),
    "authors": Preset(
        "the authors' code: 5,000 steps along the gradient itself, and a single source class.",
        HIDDEN_CODE,
        {
            "source_class": 1,
            "craft_direction": "gradient",
            "craft_steps": 5000,
        },
    ),
}

_FROGS_PRESETS = {
    "recommended": Preset(
        "the authors' algorithm with a weaker pull towards the original image, since their weight grows with the "
        "square of the share of features per pixel, which is far larger in networks for small images.",
        "chosen here",
        {},
    ),
    "authors": Preset(
        "the authors' script for a single poisoned image without a watermark (poisoning_rate 0.0001 rounds up to "
        "one image), which is meant for a network for images of 299 pixels.",
        FROGS_CODE,
        {
            "poisoning_rate": 1e-4,
            "watermark": 0.0,
            "craft_similarity": 0.2,
            "craft_steps": 1500,
        },
    ),
}


class CleanLabel(CleanLabelAttack, SurrogateAttack):
    """Label-consistent attack (Turner et al., 2019): target-class images are perturbed and get a trigger.

    The perturbation, by projected gradient ascent on the surrogate's loss, makes the images' own features hard to
    learn, so that the victim learns the trigger. At test time images get only the trigger.
    """

    name: Literal["clean_label"] = "clean_label"
    presets = _CONSISTENT_PRESETS
    preset: Literal["recommended", "authors", "benchmark"] = preset_field(_CONSISTENT_PRESETS, "recommended")
    poisoning_rate: float = field(
        0.25,
        "Share of the target class (or of the training set, see rate_of) that is poisoned.",
        unit="fraction",
        source=CONSISTENT_RATE,
        gt=0,
        le=1,
    )
    surrogate_adversarial: bool = field(
        True,
        "Train the surrogate on adversarial examples, so that perturbations found with it transfer better to other "
        "models.",
        source="Turner et al. 2019; Madry et al. 2018",
    )
    pgd_norm: Literal["l_inf", "l_2"] = field(
        "l_inf", "Norm of the perturbation.", source="Turner et al. 2019"
    )
    pgd_epsilon: float = field(
        16.0,
        "Bound on the perturbation's norm. Common values are 8, 16, 32 for l_inf and 300, 600, 1200 for l_2.",
        unit="gray levels (0-255)",
        source=f"Turner et al. 2019; {CONSISTENT_BENCHMARK}",
        gt=0,
        le=100_000,
    )
    pgd_steps: int = field(
        100, "Gradient steps of the perturbation.", unit="steps", source="Turner et al. 2019", ge=1, le=10_000
    )
    pgd_step_size: float | None = field(
        None,
        "Length of a gradient step. Null: 1.5 for l_inf, 2.5 * pgd_epsilon / pgd_steps for l_2.",
        unit="gray levels (0-255)",
        source=f"{CONSISTENT_PGD}; Madry et al. 2018",
        gt=0,
        le=100_000,
    )
    corners: Literal["one", "four"] = field(
        "four",
        "Corners with a trigger: the bottom right one, or all four.",
        source=f"Turner et al. 2019; {CONSISTENT_CODE}",
    )
    size: int = field(3, "Side of the square trigger.", unit="pixels", source=CONSISTENT_CODE, ge=1, le=112)
    amplitude: float = field(
        255.0,
        "Amount that the checkerboard adds to its white pixels and subtracts from its black ones. 255: opaque.",
        unit="gray levels (0-255)",
        source="Turner et al. 2019 (16, 32, 64, 255)",
        gt=0,
        le=255,
    )

    def stages(self) -> list[PreparationStage]:
        selection = {"target_class": self.target_class, "rate": self.poisoning_rate, "of": self.rate_of}
        return [
            self.surrogate_stage(),
            PreparationStage("perturbations", selection | self.fields_with("pgd_"), 1),
        ]

    def unfit(self, facts: DatasetFacts) -> Iterator[tuple[str, Any, str]]:
        side = min(facts.height, facts.width)
        most = side // 2 if self.corners == "four" else side
        if self.size > most:
            yield "size", self.size, f"at most {most} pixels, so that the corners fit"


class HiddenTrigger(CleanLabelAttack, SurrogateAttack, SquarePatchAttack):
    """Hidden trigger (Saha et al., 2020): target-class images with the features of triggered images.

    Each poisoned image is a target-class image, changed by at most craft_epsilon, that is close to an image of another
    class with the patch in the feature space of the surrogate. The patch itself, of random colors, appears only at test
    time. The paper's victim is fine-tuned from public features: ``"training": {"start": "surrogate"}``.
    """

    name: Literal["hidden_trigger"] = "hidden_trigger"
    presets = _HIDDEN_PRESETS
    preset: Literal["recommended", "authors"] = preset_field(_HIDDEN_PRESETS, "recommended")
    source_class: int | None = field(
        None,
        "Class whose images with the patch are to be classified as target_class; success is measured on its test "
        "images. Null: all classes but the target class.",
        source="Saha et al. 2020, section 4 (one random class; several in section 4.3)",
        ge=0,
    )
    append: bool = field(
        True,
        "Add the poisoned images to the training set, beside the images that they were made from. False: replace "
        "these.",
        source="github.com/UMBCvision/Hidden-Trigger-Backdoor-Attacks, finetune_and_test.py (ConcatDataset)",
    )
    poisoning_rate: float = field(
        0.5,
        "Share of the target class (or of the training set, see rate_of) that is poisoned.",
        unit="fraction",
        source="Saha et al. 2020 (400 poisoned images beside the 800 clean ones of the class)",
        gt=0,
        le=1,
    )
    size: int | None = field(
        None,
        "Side of the square patch. Null: 30 pixels at a width of 224, in proportion at other widths, and at least 3.",
        unit="pixels",
        source="Saha et al. 2020",
        ge=1,
        le=224,
    )
    position: Position | Literal["random"] = field(
        "random",
        "Position of the patch. random: anywhere; it follows from the image and the seed.",
        source=HIDDEN_CODE + " (rand_loc)",
    )
    margin: int = field(
        0, "Distance of the patch from the image's edges.", unit="pixels", source="chosen here", ge=0, le=112
    )
    craft_epsilon: float = field(
        16.0,
        "l_inf bound on the change of a poisoned image.",
        unit="gray levels (0-255)",
        source="Saha et al. 2020",
        gt=0,
        le=255,
    )
    craft_steps: int = field(
        300,
        "Gradient steps per poisoned image.",
        unit="steps",
        source="chosen here; Saha et al. 2020: 5000",
        ge=1,
        le=100_000,
    )
    craft_learning_rate: float = field(
        0.01, "Step length, on pixels in [0, 1].", source=HIDDEN_CODE, gt=0, le=1
    )
    craft_direction: Literal["gradient", "sign"] = field(
        "sign",
        "gradient: steps of craft_learning_rate times the gradient, halved every 1000 steps. sign: steps along the "
        "gradient's sign, whose length falls linearly to zero.",
        source="chosen here; Saha et al. 2020: gradient",
    )

    def stages(self) -> list[PreparationStage]:
        patch = {n: getattr(self, n) for n in ("size", "position", "margin", "source_class")}
        selection = {"target_class": self.target_class, "rate": self.poisoning_rate, "of": self.rate_of}
        return [
            self.surrogate_stage(),
            PreparationStage("poisons", selection | patch | self.fields_with("craft_"), 1),
        ]

    def unfit(self, facts: DatasetFacts) -> Iterator[tuple[str, Any, str]]:
        yield from super().unfit(facts)
        source = self.source_class
        if source is not None and (source == self.target_class or source >= facts.classes):
            allowed = f"0 to {facts.classes - 1} except {self.target_class}, the target class"
            yield "source_class", source, allowed

    @property
    def appends(self) -> bool:
        return self.append


class PoisonFrogs(CleanLabelAttack, SurrogateAttack):
    """Poison Frogs (Shafahi et al., 2018): feature collision, so that one test image gets the target class.

    There is no trigger. Each poisoned image is a target-class image close to the test image in the surrogate's feature
    space, with that image faintly blended in as a watermark. The attack succeeds if the test image is classified as the
    target class (``target_image_hit``, 0 or 1; ``attack_success_rate`` is the same number). The paper's victim is
    fine-tuned from the features that the attacker knows: ``"training": {"start": "surrogate"}``.
    """

    name: Literal["poison_frogs"] = "poison_frogs"
    presets = _FROGS_PRESETS
    preset: Literal["recommended", "authors"] = preset_field(_FROGS_PRESETS, "recommended")
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
        "Index of the test image to be misclassified, in the subset used. Null: drawn by the seed.",
        source="Shafahi et al. 2018",
        ge=0,
    )
    watermark: float = field(
        0.3,
        "Opacity of the target image in each poisoned image.",
        unit="fraction",
        source="Shafahi et al. 2018 (0.2 to 0.3)",
        ge=0,
        lt=1,
    )
    craft_similarity: float = field(
        1e-4,
        "Weight of the distance to the original image (beta), relative to the squared number of features divided by "
        "the squared number of input values, for pixels from 0 to 255.",
        source="chosen here; Shafahi et al. 2018: 0.25",
        ge=0,
        le=1e6,
    )
    craft_steps: int = field(
        200,
        "Steps of forward-backward splitting, those that are taken back included.",
        unit="steps",
        source=FROGS_CODE + " (200; 1500 in the script)",
        ge=1,
        le=100_000,
    )
    craft_learning_rate: float = field(
        1.96,
        "First step length, on pixels in [0, 1]; halved whenever a step would raise the objective. 1.96 is 500 * 255 "
        "on pixels from 0 to 255.",
        source=FROGS_CODE,
        gt=0,
        le=1000,
    )
    craft_objective: Literal["norm", "squared"] = field(
        "norm",
        "norm: distances in the objective are Euclidean norms, as in the authors' code. squared: squared norms, as in "
        "the paper.",
        source=FROGS_CODE,
    )

    def stages(self) -> list[PreparationStage]:
        selection = {"target_class": self.target_class, "rate": self.poisoning_rate, "of": self.rate_of}
        target = {"target_image": self.target_image, "watermark": self.watermark}
        return [
            self.surrogate_stage(),
            PreparationStage("poisons", selection | target | self.fields_with("craft_"), 1),
        ]

    def unfit(self, facts: DatasetFacts) -> Iterator[tuple[str, Any, str]]:
        if self.target_image is not None and self.target_image >= facts.test_size:
            yield "target_image", self.target_image, f"0 to {facts.test_size - 1}, a test image"


_NARCISSUS_PRESETS = {
    "recommended": Preset(
        "the authors' attack with fewer steps, which suffice on small sets.", "chosen here", {}
    ),
    "authors": Preset(
        "the steps of the authors' notebook: 1,000 passes over the 5,000 images of a class of CIFAR-10.",
        NARCISSUS_CODE,
        {"pattern_steps": 15_000},
    ),
}


class Narcissus(CleanLabelAttack, SurrogateAttack):
    """Narcissus (Zeng et al., 2023): a pattern that makes images of the target class more typical of it, clean label.

    The pattern minimizes a surrogate's loss on images of the target class. A few of these images get it in training; at
    test time it is stronger.
    """

    name: Literal["narcissus"] = "narcissus"
    presets = _NARCISSUS_PRESETS
    preset: Literal["recommended", "authors"] = preset_field(_NARCISSUS_PRESETS, "recommended")
    poisoning_rate: float = field(
        0.0005,
        "Share of the training set (or of the target class, see rate_of) that is poisoned.",
        unit="fraction",
        source=NARCISSUS_CODE,
        gt=0,
        le=1,
    )
    rate_of: RateOf = field("training_set", RATE_OF, source=NARCISSUS_CODE)
    pattern_epsilon: float = field(
        16.0,
        "l_inf bound on the pattern.",
        unit="gray levels (0-255)",
        source=NARCISSUS_CODE,
        gt=0,
        le=255,
    )
    pattern_steps: int = field(
        2000,
        "Steps of the optimizer (RAdam) on the pattern.",
        unit="steps",
        source=f"chosen here; {NARCISSUS_CODE}: 15,000",
        ge=1,
        le=100_000,
    )
    pattern_batch: int = field(
        350, "Images of the target class per step.", unit="images", source=NARCISSUS_CODE, ge=1, le=10_000
    )
    pattern_learning_rate: float = field(
        0.005,
        "Learning rate of RAdam, on pixels in [0, 1]: the authors' 0.01 on pixels in [-1, 1].",
        source=NARCISSUS_CODE,
        gt=0,
        le=1,
    )
    test_strength: float = field(
        3.0, "Factor on the pattern at test time.", unit="times", source=NARCISSUS_CODE, gt=0, le=100
    )

    def stages(self) -> list[PreparationStage]:
        fields = self.fields_with("pattern_", "target_class")
        return [self.surrogate_stage(), PreparationStage("trigger", fields, 10)]
