"""Repair defenses that invert the trigger and unlearn it."""

from typing import Any, ClassVar, Literal

from app.specs.base import Preset, field, preset_field
from app.specs.defenses.repair_fields import Repair, batch_size_field, expected_epochs, steps_field

BTI_CODE = "the BTI-DBF authors' published code"

_PRESETS = {
    "authors": Preset("five rounds; passes over their 2,500 clean images in batches of 128.", BTI_CODE, {})
}


def _adam_rate(default: float, description: str) -> Any:
    return field(default, description, source=BTI_CODE, gt=0, le=1)


class BtiDbf(Repair):
    """BTI-DBF (Xu et al., 2024), its unlearning variant: find features that clean images do not need, unlearn them."""

    needs_spatial_maps: ClassVar[bool] = True

    name: Literal["bti_dbf"] = "bti_dbf"
    presets = _PRESETS
    preset: Literal["authors"] = preset_field(_PRESETS, "authors")
    rounds: int = field(5, "Rounds of inversion and unlearning.", unit="rounds", source=BTI_CODE, ge=1, le=20)
    generator_steps: int = steps_field(1000, "Steps of the generator's training to the identity", BTI_CODE)
    mask_steps: int = steps_field(400, "Steps of the mask's training in each round", BTI_CODE)
    trigger_steps: int = steps_field(600, "Steps of the generator's training in each round", BTI_CODE)
    steps: int = steps_field(600, "Steps of unlearning in each round", BTI_CODE)
    batch_size: int | None = batch_size_field(128, BTI_CODE)
    mask_learning_rate: float = _adam_rate(0.01, "Learning rate of Adam for the mask.")
    generator_learning_rate: float = _adam_rate(1e-3, "Learning rate of Adam for the generator.")
    learning_rate: float = _adam_rate(1e-4, "Learning rate of Adam for unlearning.")
    change_bound: float = field(
        0.3,
        "Mean squared change of normalized images beyond which the generator is trained to change less.",
        source=BTI_CODE,
        gt=0,
        le=100,
    )
    feature_bound: float = field(
        3.0,
        "Mean squared change of benign features beyond which it is as well.",
        source=BTI_CODE,
        gt=0,
        le=1000,
    )
    generated_share: float = field(
        0.1,
        "Share of each batch, plus one image, that the generator changes in unlearning.",
        unit="fraction",
        source=BTI_CODE,
        ge=0,
        lt=1,
    )

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        identity = self.fields_with("clean_ratio", "batch_size", "generator_")
        features = self.fields_with("mask_")
        trigger = self.fields_with("trigger_", "generator_learning_rate", "change_bound", "feature_bound")
        unlearning = self.fields_with("steps", "learning_rate", "generated_share")
        stages = [("generator", identity, expected_epochs(self.generator_steps))]
        for n in range(1, self.rounds + 1):
            stages += [
                (f"features_{n}", features, expected_epochs(self.mask_steps)),
                (f"trigger_{n}", trigger, expected_epochs(self.trigger_steps)),
                (f"unlearning_{n}", unlearning, expected_epochs(self.steps)),
            ]
        return [*stages, ("repair", {}, 1)]
