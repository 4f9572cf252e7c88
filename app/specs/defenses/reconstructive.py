"""Reconstructive neuron pruning."""

from typing import Any, ClassVar, Literal

from app.specs.base import Preset, field, preset_field
from app.specs.defenses.base import BENCHMARK, HeldOutDefense
from app.specs.defenses.repair_fields import (
    CHOSEN,
    Repair,
    accuracy_drop_field,
    batch_size_field,
    expected_epochs,
    learning_rate_field,
    steps_field,
    weight_decay_field,
)

RNP_CODE = "the RNP authors' published code"

_PRESETS = {
    "recommended": Preset(
        "the authors' trainings on the clean set of the other repairs, and the largest threshold within "
        "BackdoorBench's bound, but on held-out clean images.",
        f"{RNP_CODE}; {BENCHMARK}; {CHOSEN}",
        {},
    ),
    "authors": Preset(
        "1 % of the training set; the threshold as above, since they report all.",
        RNP_CODE,
        {"clean_ratio": 0.01},
    ),
    "benchmark": Preset(
        "1 % of the training set, threshold 0.7, no bound.",
        BENCHMARK,
        {"clean_ratio": 0.01, "batch_size": 256, "unlearning_steps": 80, "threshold": 0.7},
    ),
}


class Rnp(Repair, HeldOutDefense):
    """RNP (Li et al., 2023): prune the neurons that hinder recovery after clean images were unlearned."""

    needs_batch_norm: ClassVar[bool] = True

    name: Literal["rnp"] = "rnp"
    presets = _PRESETS
    preset: Literal["recommended", "authors", "benchmark"] = preset_field(_PRESETS, "recommended")
    batch_size: int | None = batch_size_field(128, RNP_CODE)
    unlearning_steps: int = steps_field(84, "Steps of unlearning at most", RNP_CODE)
    unlearning_learning_rate: float = learning_rate_field(
        0.01, "Learning rate of unlearning, divided by ten after 10/21 and after 20/21 of it.", RNP_CODE
    )
    unlearned_accuracy: float = field(
        0.2,
        "Unlearning ends after the first epoch whose accuracy on the clean images is at most this.",
        unit="fraction",
        source=RNP_CODE,
        ge=0,
        le=1,
    )
    weight_decay: float | None = weight_decay_field(5e-4, RNP_CODE)
    recovering_steps: int = steps_field(80, "Steps of the masks' training", RNP_CODE)
    recovering_learning_rate: float = learning_rate_field(
        0.2, "Constant learning rate of the masks.", RNP_CODE
    )
    alpha: float = field(0.2, "Factor on the loss of the masks' training.", source=RNP_CODE, gt=0, le=100)
    threshold: float | None = field(
        None,
        "Neurons with a mask up to this are pruned, whatever it costs. Null: the largest of 0, 0.05 ... 0.9 within "
        "max_accuracy_drop.",
        source=f"{RNP_CODE}; {BENCHMARK}",
        ge=0,
        lt=1,
    )
    max_accuracy_drop: float = accuracy_drop_field(0.1, BENCHMARK)

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        recovery, pruning = ("recovering", "alpha"), ("threshold", "max_accuracy_drop")
        return [
            (
                "clean_unlearning",
                self.fields_with("clean_ratio", "held_out_ratio", "batch_size", "unlearn", "weight_decay"),
                expected_epochs(self.unlearning_steps),
            ),
            ("masks", self.fields_with(*recovery), expected_epochs(self.recovering_steps)),
            ("repair", self.fields_with(*pruning), 1),
        ]
