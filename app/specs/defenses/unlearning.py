"""Repair defenses that unlearn perturbations which the victim confuses with its trigger."""

from typing import Any, Literal

from app.specs.base import Preset, field, preset_field
from app.specs.defenses.base import BENCHMARK
from app.specs.defenses.repair_fields import Repair, batch_size_field, expected_epochs, steps_field

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
