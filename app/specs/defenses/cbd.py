"""Causality-inspired backdoor defense."""

from typing import Any, Literal

from app.specs.base import Preset, field, preset_field
from app.specs.defenses.base import Defense

CODE = "zaixizhang/CBD, the authors' code"

_PRESETS = {
    "authors": Preset(
        "the settings of the authors' code for CIFAR-10, as it runs: its option `disentangle`, which would add the "
        "paper's term against mutual information, is off there.",
        CODE,
        {},
    ),
}


class Cbd(Defense):
    """CBD (Zhang et al., 2023): samples that a briefly trained, backdoored model already fits count less."""

    name: Literal["cbd"] = "cbd"
    presets = _PRESETS
    preset: Literal["authors"] = preset_field(_PRESETS, "authors")
    biased_epochs: int = field(
        5,
        "Training of the model that is to learn the backdoor and little else.",
        unit="epochs",
        source=CODE,
        ge=1,
        le=500,
    )
    learning_rate: float = field(
        0.1,
        "Learning rate of both models: constant for the backdoored one; for the clean one a tenth of it after a fifth "
        "of the training, a hundredth after seven tenths.",
        source=CODE,
        gt=0,
        le=10,
    )
    epochs: int = field(
        100,
        "Training of the clean model.",
        unit="epochs",
        source=CODE,
        ge=1,
        le=1000,
    )
    batch_size: int = field(64, "Images per step.", unit="images", source=CODE, ge=2, le=65536)
    weight_decay: float = field(1e-4, "L2 penalty.", source=CODE, ge=0, le=1)

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        shared = self.fields_with("learning_rate", "batch_size", "weight_decay")
        return [
            ("biased", shared | self.fields_with("biased_epochs"), self.biased_epochs),
            ("training", shared | self.fields_with("epochs"), self.epochs),
        ]
