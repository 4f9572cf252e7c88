"""The victim and the beneficiary."""

from typing import Any, ClassVar, Literal

from app.specs.base import Preset, field, preset_field
from app.specs.defenses.base import Defense

CODE = "Zixuan-Zhu/VaB, the authors' code"
SHORTER = f"chosen here: ten trainings of the victim at most; {CODE}"

_PRESETS = {
    "recommended": Preset(
        "the authors' rates and losses with two fifths of their epochs: nine trainings of the victim (30 epochs).",
        SHORTER,
        {},
    ),
    "authors": Preset(
        "the settings of the authors' code for CIFAR-10. The last model is kept, where they keep the best by test "
        "accuracy.",
        CODE,
        {"mixed_epochs": 100, "suppressed_epochs": 100},
    ),
}


class Vab(Defense):
    """V&B (Zhu et al., 2023b): one model learns the poison, and shows the other which samples to trust."""

    needs_spatial_maps: ClassVar[bool] = True

    name: Literal["vab"] = "vab"
    presets = _PRESETS
    preset: Literal["recommended", "authors"] = preset_field(_PRESETS, "recommended")
    warmup_epochs: int = field(
        1,
        "Epochs in which the first model learns everything. The authors' has 391 steps; a smaller dataset may "
        "need more of them for the trigger to be learned.",
        unit="epochs",
        source=CODE,
        ge=1,
        le=500,
    )
    victim_epochs: int = field(
        2,
        "Epochs after these, in which it learns the samples of which it is surest.",
        unit="epochs",
        source=CODE,
        ge=1,
        le=100,
    )
    victim_learning_rate: float = field(
        0.001, "Learning rate of Adam for the first model.", source=CODE, gt=0, le=1
    )
    victim_interval: int = field(
        5,
        "Epochs of the second model's first phase after which the first one is trained on.",
        unit="epochs",
        source=CODE,
        ge=1,
        le=500,
    )
    threshold: float = field(
        0.2,
        "A sample is trusted if the entropy of the first model's prediction is above this share of the range of all "
        "entropies. It begins at 0.6.",
        unit="fraction",
        source=CODE,
        gt=0,
        lt=1,
    )
    momentum: float = field(
        0.75, "Weight of the new entropies beside the earlier ones.", unit="fraction", source=CODE, gt=0, le=1
    )
    mixed_epochs: int = field(
        40,
        "First phase of the second model: on trusted samples alone, whose images are mixed by attention.",
        unit="epochs",
        source=SHORTER,
        ge=1,
        le=1000,
    )
    suppressed_epochs: int = field(
        40,
        "Second phase: also on the images of the others, with what the first model predicts taken off all targets.",
        unit="epochs",
        source=SHORTER,
        ge=0,
        le=1000,
    )
    attention_threshold: float = field(
        0.1, "Pixels with at least this attention are mixed.", unit="fraction", source=CODE, ge=0, le=1
    )
    unlabeled_weight: float = field(
        0.1,
        "Weight of the images without labels in the first half of the second phase.",
        source=CODE,
        ge=0,
        le=100,
    )
    last_unlabeled_weight: float = field(0.5, "Their weight in its second half.", source=CODE, ge=0, le=100)
    learning_rate: float = field(
        0.1,
        "Learning rate of the second model; a tenth of it after each quarter of the training.",
        source=CODE,
        gt=0,
        le=10,
    )
    weight_decay: float = field(5e-4, "L2 penalty of both models.", source=CODE, ge=0, le=1)
    batch_size: int = field(128, "Images per step.", unit="images", source=CODE, ge=2, le=65536)

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        victim = (
            "warmup_epochs",
            "victim_epochs",
            "victim_learning_rate",
            "threshold",
            "momentum",
            "weight_decay",
            "batch_size",
        )
        epochs = self.mixed_epochs + self.suppressed_epochs
        return [
            ("biased", self.fields_with(*victim), self.warmup_epochs + self.victim_epochs),
            ("training", self.fields(), 3 * epochs),
        ]
