"""Attacks whose trigger depends on the image.

They were published with control over the victim's training. Here they produce a poisoned set, so that training
defenses apply to them.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from app.specs.attacks.base import JOINT, DirtyLabelAttack, PreparationStage, TrainingAttack
from app.specs.base import Preset, field, preset_field
from app.specs.facts import DatasetFacts

INPUT_AWARE_CODE = "github.com/VinAIResearch/input-aware-backdoor-attack-release, config.py and train.py"
BPP_CODE = "github.com/RU-System-Software-and-Security/BppAttack, config.py and bppattack.py"
BPP_BENCHMARK = "BackdoorBench, config/attack/bpp/default.yaml"
WANET_CODE = "github.com/VinAIResearch/Warping-based_Backdoor_Attack-release, config.py"

_INPUT_AWARE_PRESETS = {
    "recommended": Preset(
        "the authors' settings with a tenth of their joint epochs, which cost far more than the victim's training.",
        "chosen here",
        {},
    ),
    "authors": Preset(
        "the authors' 600 epochs. Their learning rates fall by steps, of which classifier and generator have "
        "different ones; here both follow a cosine.",
        INPUT_AWARE_CODE,
        {"generator_epochs": 600},
    ),
}

_WANET_PRESETS = {
    "authors": Preset("the settings of the authors' code.", WANET_CODE, {}),
}


class InputAware(DirtyLabelAttack):
    """Input-aware dynamic backdoor (Nguyen and Tran, 2020): a generated trigger for each image, dirty label.

    A mask network learns where the trigger goes. A generator then learns its pattern, together with a classifier;
    triggers must differ between images and work only on the image that they were generated for. The training set is
    poisoned with both networks, frozen. Cross samples carry another image's trigger and keep their label.
    """

    name: Literal["input_aware"] = "input_aware"
    cross_field: ClassVar[str] = "cross_rate"
    presets = _INPUT_AWARE_PRESETS
    preset: Literal["recommended", "authors"] = preset_field(_INPUT_AWARE_PRESETS, "recommended")
    cross_rate: float = field(
        0.1,
        "Share of the training set that is cross samples: another image's trigger, true label.",
        unit="fraction",
        source=INPUT_AWARE_CODE,
        gt=0,
        lt=1,
    )
    mask_density: float = field(
        0.032,
        "Mean of the mask above which it is penalized.",
        unit="fraction",
        source=INPUT_AWARE_CODE,
        gt=0,
        le=1,
    )
    mask_epochs: int = field(
        25, "Training of the mask network.", unit="epochs", source=INPUT_AWARE_CODE, ge=1, le=1000
    )
    generator_epochs: int = field(
        60,
        "Joint training of generator and classifier.",
        unit="epochs",
        source=f"chosen here; {INPUT_AWARE_CODE}: 600",
        ge=1,
        le=5000,
    )
    diversity_weight: float = field(
        1.0, "Weight of the diversity loss (lambda_div).", source=INPUT_AWARE_CODE, ge=0, le=1000
    )
    network_learning_rate: float = field(
        0.01,
        "Learning rate of Adam for the mask network and the generator, and of SGD for the classifier.",
        source=INPUT_AWARE_CODE,
        gt=0,
        le=1,
    )

    @property
    def cross_share(self) -> float:
        return self.cross_rate

    def stages(self) -> list[PreparationStage]:
        mask = self.fields_with("mask_", "diversity_weight", "network_learning_rate")
        generator = self.fields_with("generator_", "cross_rate", "poisoning_rate", "label_mode")
        return [
            PreparationStage("mask", mask, self.mask_epochs),
            PreparationStage(
                "generator", generator | {"target_class": self.target_class}, 2 * self.generator_epochs
            ),
        ]


_BPP_PRESETS = {
    "paper": Preset(
        "quantization with dithering, as in the paper, at the rates of the authors' code.",
        f"Wang et al. 2022, section 3; {BPP_CODE}",
        {},
    ),
    "authors": Preset(
        "the defaults of the authors' code, which does not dither.", BPP_CODE, {"dithering": False}
    ),
    "benchmark": Preset(
        "BackdoorBench's settings: lower rates, no dithering.",
        BPP_BENCHMARK,
        {"dithering": False, "poisoning_rate": 0.1, "cover_rate": 0.1},
    ),
}


class JointlyTrainedAttack(TrainingAttack):
    """Base class of attacks whose authors poison each batch of the victim's training as it is drawn."""

    joint_epochs: int = field(
        0,
        "Epochs of the authors' own training, which poisons each batch as it is drawn. The metrics of that model are "
        "attacker_clean_accuracy, attacker_attack_success_rate and attacker_cross_trigger_accuracy. 0: no such "
        "training. The authors train for 1,000 epochs.",
        unit="epochs",
        source="chosen here: an attacker who only poisons data trains no model",
        ge=0,
        le=1000,
    )

    @model_validator(mode="after")
    def _check_hand_over(self) -> Self:
        if self.hand_over and not self.joint_epochs:
            raise ValueError("hand_over requires joint_epochs, which train the attacker's model")
        return self

    @property
    def joint_fields(self) -> tuple[str, ...]:
        """The fields of the trigger that the joint training depends on."""
        raise NotImplementedError

    def stages(self) -> list[PreparationStage]:
        if not self.joint_epochs:
            return []
        common = ("joint_", "poisoning_rate", "target_class", "label_mode")
        return [PreparationStage(JOINT, self.fields_with(*common, *self.joint_fields), self.joint_epochs)]


class Bpp(JointlyTrainedAttack):
    """BppAttack (Wang et al., 2022): the image with fewer gray levels, dithered, dirty label.

    Cover samples carry the change that the trigger makes in another image, and keep their label, so that only an
    image's own quantization is the trigger.
    """

    name: Literal["bpp"] = "bpp"
    presets = _BPP_PRESETS
    preset: Literal["paper", "authors", "benchmark"] = preset_field(_BPP_PRESETS, "paper")
    poisoning_rate: float = field(
        0.2, "Share of the training set that is poisoned.", unit="fraction", source=BPP_CODE, gt=0, le=1
    )
    cover_rate: float = field(
        0.2,
        "Share of the training set that is cover samples, the authors' negative samples: another image's change, true "
        "label. 0: none.",
        unit="fraction",
        source=BPP_CODE,
        ge=0,
        lt=1,
    )
    levels: int = field(8, "Number of values per channel.", unit="gray levels", source=BPP_CODE, ge=2, le=255)
    dithering: bool = field(
        True,
        "Floyd-Steinberg dithering: the error of a pixel is spread over its neighbors to the right and below.",
        source=f"Wang et al. 2022, section 3; {BPP_CODE}: false",
    )

    @property
    def cross_share(self) -> float:
        return self.cover_rate

    @property
    def joint_fields(self) -> tuple[str, ...]:
        return ("levels", "dithering", "cover_rate")


class WaNet(JointlyTrainedAttack):
    """WaNet (Nguyen and Tran, 2021): a slight warp of the image, dirty label.

    The warp is smooth, the same for all images, and drawn by the seed. Cross samples are warped randomly and keep their
    label, so that only this one warp becomes the trigger.
    """

    name: Literal["wanet"] = "wanet"
    cross_field: ClassVar[str] = "cross_ratio"
    presets = _WANET_PRESETS
    preset: Literal["authors"] = preset_field(_WANET_PRESETS, "authors")
    strength: float = field(0.5, "Strength of the warp (s).", source=WANET_CODE, gt=0, le=10)
    grid: int = field(
        4,
        "Control points along each side of the warping grid (k).",
        unit="points",
        source=WANET_CODE,
        ge=2,
        le=64,
    )
    cross_ratio: float = field(
        2.0,
        "Cross samples (randomly warped, true label) per poisoned image. 0: none.",
        source=WANET_CODE,
        ge=0,
        le=8,
    )

    @property
    def cross_share(self) -> float:
        return self.cross_ratio * self.poisoning_rate

    def unfit(self, facts: DatasetFacts) -> Iterator[tuple[str, Any, str]]:
        side = min(facts.height, facts.width)
        if self.grid > side:
            yield "grid", self.grid, f"at most {side}, the image's shorter side"

    @property
    def joint_fields(self) -> tuple[str, ...]:
        return ("strength", "grid", "cross_ratio")
