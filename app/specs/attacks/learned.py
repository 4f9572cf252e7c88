"""Attacks whose trigger is made by a network that the attacker trains."""

from typing import Literal

from app.specs.attacks.base import JOINT, DirtyLabelAttack, PreparationStage, TrainingAttack
from app.specs.base import Preset, field, preset_field

LIRA_CODE = "sunbelbd/invisible_backdoor_attacks, README and paddle/lira_trigger_generation.py"
LIRA_BENCHMARK = "BackdoorBench, config/attack/lira/default.yaml"
ISSBA_CODE = "yuezunli/ISSBA, encode_image.py"
ISSBA_BENCHMARK = "BackdoorBench, resource/ssba/train.py"

_LIRA_PRESETS = {
    "recommended": Preset(
        "a stronger change, so that a victim learns it from a poisoned set; a shorter joint training with a faster "
        "generator, so that it takes minutes.",
        "chosen here",
        {},
    ),
    "authors": Preset(
        "the authors' settings for CIFAR-10: changes of one gray level, and the model that the attacker trained.",
        LIRA_CODE,
        {
            "hand_over": True,
            "epsilon": 0.64,
            "generator_epochs": 50,
            "generator_learning_rate": 0.0001,
            "classifier_epochs": 250,
        },
    ),
    "benchmark": Preset(
        "BackdoorBench's settings: the authors' with fewer epochs of the classifier.",
        LIRA_BENCHMARK,
        {
            "hand_over": True,
            "epsilon": 0.64,
            "generator_epochs": 50,
            "generator_learning_rate": 0.0001,
            "classifier_epochs": 50,
        },
    ),
}


class Lira(TrainingAttack):
    """LIRA (Doan et al., 2021): a faint change that a generator makes for each image, dirty label.

    The generator and a classifier are trained jointly: one makes changes that the other classifies as the target, the
    other learns them beside the clean images. The classifier is then trained further with the generator as it is. The
    training set is poisoned with the generator.
    """

    name: Literal["lira"] = "lira"
    presets = _LIRA_PRESETS
    preset: Literal["recommended", "authors", "benchmark"] = preset_field(_LIRA_PRESETS, "recommended")
    epsilon: float = field(
        8.0,
        "Largest change of a value. Images are stored as bytes, so changes are rounded to whole gray levels. The "
        "authors' 0.01 of a standard deviation of CIFAR-10 is 0.64.",
        unit="gray levels (0-255)",
        source=f"chosen here; {LIRA_CODE}: 0.64",
        gt=0.5,
        le=255,
    )
    generator_epochs: int = field(
        20,
        "Joint training of the generator and the classifier.",
        unit="epochs",
        source=f"chosen here; {LIRA_CODE}: 50",
        ge=1,
        le=5000,
    )
    generator_learning_rate: float = field(
        0.001,
        "Learning rate of Adam for the generator.",
        source=f"chosen here; {LIRA_CODE}: 0.0001",
        gt=0,
        le=1,
    )
    classifier_epochs: int = field(
        5,
        "Training of the classifier with the generator as it is.",
        unit="epochs",
        source=f"chosen here; {LIRA_CODE}: 250",
        ge=1,
        le=5000,
    )
    classifier_learning_rate: float = field(
        0.01,
        "Learning rate of SGD for the classifier: constant in the joint training, then falling by steps.",
        source=LIRA_CODE,
        gt=0,
        le=1,
    )
    clean_weight: float = field(
        0.5,
        "Weight of the classifier's loss on clean images (alpha); triggered ones have the rest.",
        unit="fraction",
        source=LIRA_CODE,
        gt=0,
        lt=1,
    )

    def stages(self) -> list[PreparationStage]:
        common = ("classifier_learning_rate", "clean_weight", "epsilon", "target_class", "label_mode")
        return [
            PreparationStage("generator", self.fields_with("generator_", *common), 4 * self.generator_epochs),
            PreparationStage(JOINT, self.fields_with("classifier_epochs"), 2 * self.classifier_epochs),
        ]


_ISSBA_PRESETS = {
    "recommended": Preset(
        "fewer and larger steps, so that the encoder takes minutes on a small set.", "chosen here", {}
    ),
    "authors": Preset(
        "the encoder as BackdoorBench's PyTorch version of the authors' trains it, added to the image, as the authors' "
        "is.",
        f"{ISSBA_CODE}; {ISSBA_BENCHMARK}",
        {
            "encoder_steps": 15_640,
            "encoder_learning_rate": 0.0001,
            "encoder_wait": 1000,
            "encoder_ramp": 3000,
        },
    ),
    "benchmark": Preset(
        "BackdoorBench's SSBA: the encoder makes the whole image.",
        ISSBA_BENCHMARK,
        {
            "encoder_steps": 15_640,
            "encoder_learning_rate": 0.0001,
            "encoder_wait": 1000,
            "encoder_ramp": 3000,
            "encoder_residual": False,
        },
    ),
}


class Issba(DirtyLabelAttack):
    """ISSBA, sample-specific backdoor (Li et al., 2021): an encoder hides one code in each image, dirty label.

    Encoder and decoder are trained so that the decoder reads a random code from an image that hardly changed, as in
    steganography. All poisoned images hide the same code, each by changes of its own.
    """

    name: Literal["issba"] = "issba"
    presets = _ISSBA_PRESETS
    preset: Literal["recommended", "authors", "benchmark"] = preset_field(_ISSBA_PRESETS, "recommended")
    code_bits: int = field(
        100, "Length of the code, which the seed draws.", unit="bits", source=ISSBA_CODE, ge=1, le=1000
    )
    encoder_steps: int = field(
        3000,
        "Training of encoder and decoder.",
        unit="steps",
        source=f"chosen here; {ISSBA_BENCHMARK}: 20 epochs of CIFAR-10, 15,640 steps",
        ge=1,
        le=1_000_000,
    )
    encoder_batch: int = field(
        64,
        "Images per step of that training, at most the training images.",
        unit="images",
        source=ISSBA_BENCHMARK,
        ge=2,
        le=4096,
    )
    encoder_learning_rate: float = field(
        0.0003,
        "Learning rate of Adam for both.",
        source=f"chosen here; {ISSBA_BENCHMARK}: 0.0001",
        gt=0,
        le=1,
    )
    encoder_residual: bool = field(
        True,
        "true: the encoder's output is added to the image. false: it is the image.",
        source=ISSBA_CODE + " (true)",
    )
    image_weight: float = field(
        10.0,
        "Largest weight of the mean squared change, on pixels in [0, 1], beside the decoder's loss.",
        source=ISSBA_BENCHMARK,
        gt=0,
        le=1000,
    )
    encoder_wait: int = field(
        200,
        "Steps without that weight after the decoder first reads more than 0.9 of a batch's bits.",
        unit="steps",
        source=f"chosen here; {ISSBA_BENCHMARK}: 1000",
        ge=0,
        le=100_000,
    )
    encoder_ramp: int = field(
        1000,
        "Steps in which that weight then grows to image_weight.",
        unit="steps",
        source=f"chosen here; {ISSBA_BENCHMARK}: 3000",
        ge=1,
        le=100_000,
    )

    def stages(self) -> list[PreparationStage]:
        return [PreparationStage("encoder", self.fields_with("encoder_", "code_bits", "image_weight"), 20)]
