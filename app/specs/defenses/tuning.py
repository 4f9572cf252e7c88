"""Repair defenses that fine-tune the victim to a new last layer."""

from typing import Any, Literal

from app.specs.base import Preset, field, preset_field
from app.specs.defenses.repair_fields import (
    Repair,
    batch_size_field,
    expected_epochs,
    learning_rate_field,
    steps_field,
)

FST_CODE = "the FST authors' published code"
FST_PAPER = "Min et al. 2023, experiment setup"

_PRESETS = {
    "recommended": Preset(
        "the authors' ten passes on the clean set of the other repairs, 5 % as the paper has for CIFAR-100.",
        f"{FST_CODE}; {FST_PAPER}",
        {},
    ),
    "authors": Preset("2 % of the training set, ten passes.", FST_CODE, {"clean_ratio": 0.02, "steps": 80}),
}


class FeTuning(Repair):
    """FE-tuning (Min et al., 2023): a new last layer that is frozen, and the rest fine-tuned to it."""

    name: Literal["fe_tuning"] = "fe_tuning"
    presets = _PRESETS
    preset: Literal["recommended", "authors"] = preset_field(_PRESETS, "recommended")
    steps: int = steps_field(200, "Optimization steps", FST_PAPER)
    batch_size: int | None = batch_size_field(128, FST_CODE)
    learning_rate: float = learning_rate_field(0.01, "Peak learning rate, with a cosine schedule.", FST_PAPER)

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        return [("repair", self.fields(), expected_epochs(self.steps))]


class Fst(Repair):
    """FST (Min et al., 2023), feature shift tuning: a new last layer that is driven away from the victim's."""

    name: Literal["fst"] = "fst"
    presets = _PRESETS
    preset: Literal["recommended", "authors"] = preset_field(_PRESETS, "recommended")
    steps: int = steps_field(200, "Optimization steps", FST_PAPER)
    batch_size: int | None = batch_size_field(128, FST_CODE)
    learning_rate: float = learning_rate_field(0.01, "Peak learning rate, with a cosine schedule.", FST_PAPER)
    alpha: float = field(
        0.2,
        "Weight of the inner product of the new last layer and the victim's. The paper has 0.1 for GTSRB and 0.001 for "
        "200 classes, where more costs accuracy.",
        source=FST_PAPER,
        ge=0,
        le=100,
    )

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        return [("repair", self.fields(), expected_epochs(self.steps))]
