"""Repair defenses that unlearn perturbations which the victim confuses with its trigger."""

from typing import Any, ClassVar, Literal

from app.specs.base import Preset, field, preset_field
from app.specs.defenses.base import BENCHMARK
from app.specs.defenses.repair_fields import (
    Repair,
    batch_size_field,
    expected_epochs,
    learning_rate_field,
    steps_field,
    weight_decay_field,
)

_SAU_PRESETS = {
    "benchmark": Preset("100 passes in batches of 256; its authors contributed the code.", BENCHMARK, {})
}


class Sau(Repair):
    """SAU (Wei et al., 2023), shared adversarial unlearning: unlearn perturbations that fool victim and copy alike."""

    name: Literal["sau"] = "sau"
    presets = _SAU_PRESETS
    preset: Literal["benchmark"] = preset_field(_SAU_PRESETS, "benchmark")
    steps: int = steps_field(1000, "Optimization steps", BENCHMARK)
    batch_size: int | None = batch_size_field(256, BENCHMARK)
    learning_rate: float = field(1e-4, "Constant learning rate of Adam.", source=BENCHMARK, gt=0, le=1)
    radius: float = field(
        0.2,
        "Largest change of a pixel by a perturbation.",
        unit="of the range of a pixel",
        source=BENCHMARK,
        gt=0,
        le=1,
    )
    attack_steps: int = field(
        5, "Steps of each batch's perturbation.", unit="steps", source=BENCHMARK, ge=1, le=100
    )
    attack_step_size: float = field(
        0.2, "Length of such a step.", unit="of the range of a pixel", source=BENCHMARK, gt=0, le=1
    )
    adversarial_weight: float = field(
        0.01,
        "Weight of the cross-entropies in what the perturbation maximizes, beside the agreement of both models.",
        source=BENCHMARK,
        ge=0,
        le=100,
    )
    shared_weight: float = field(
        1.0, "Weight of the loss on shared perturbations.", source=BENCHMARK, ge=0, le=100
    )

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        return [("repair", self.fields(), expected_epochs(self.steps))]


_NPD_PRESETS = {
    "benchmark": Preset("5 passes of warm-up and 50 in batches of 128; its authors' own code.", BENCHMARK, {})
}


class Npd(Repair):
    """NPD (Zhu et al., 2023b), neural polarizer: a small layer inside the victim that filters the trigger."""

    needs_spatial_maps: ClassVar[bool] = True

    name: Literal["npd"] = "npd"
    presets = _NPD_PRESETS
    preset: Literal["benchmark"] = preset_field(_NPD_PRESETS, "benchmark")
    warm_up_steps: int = steps_field(100, "Steps of the layer's training on clean images alone", BENCHMARK)
    warm_up_learning_rate: float = learning_rate_field(
        1e-4, "Constant learning rate of these, without momentum and weight decay.", BENCHMARK
    )
    steps: int = steps_field(1000, "Steps against perturbations", BENCHMARK)
    batch_size: int | None = batch_size_field(128, BENCHMARK)
    learning_rate: float = learning_rate_field(0.01, "Constant learning rate of these.", BENCHMARK)
    weight_decay: float | None = weight_decay_field(5e-4, BENCHMARK)
    radius: float = field(
        3.0,
        "Largest l2 norm of a perturbation, on images in [0, 1]. BackdoorBench has 5 for GTSRB.",
        source=BENCHMARK,
        gt=0,
        le=1000,
    )
    attack_steps: int = field(
        2, "Steps of each batch's perturbation.", unit="steps", source=BENCHMARK, ge=1, le=100
    )
    adversarial_weight: float = field(
        0.4,
        "Weight of each of the three losses on perturbed images. BackdoorBench has 0.5 for GTSRB.",
        source=BENCHMARK,
        ge=0,
        le=100,
    )

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        warm_up = ("clean_ratio", "warm_up_", "batch_size")
        return [
            ("warm_up", self.fields_with(*warm_up), expected_epochs(self.warm_up_steps)),
            ("repair", self.fields(), expected_epochs(self.steps)),
        ]
