"""Meta-Sift, a detection that finds a small clean subset instead of the poison."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from app.specs.base import Preset, field, preset_field
from app.specs.defenses.base import Defense, Kind
from app.specs.defenses.repair import FineTuning, IBau

CODE = "ruoxi-jia-group/Meta-Sift, the authors' code"
SIFTER_EPOCHS = 6  # for progress only: a warm-up epoch, and one whose steps take as long as five

REPAIRS: dict[str, Callable[[], IBau | FineTuning]] = {"i_bau": IBau, "fine_tuning": FineTuning}
"""The repairs that can get the clean subset, with their default settings."""

_PRESETS = {
    "authors": Preset("the settings of the authors' code, made for a ResNet-18 on GTSRB.", CODE, {}),
}


class MetaSift(Defense):
    """Meta-Sift (Zeng et al., 2023): sift out a small clean subset, and repair the victim with it."""

    kind: ClassVar[Kind] = "detection"
    name: Literal["meta_sift"] = "meta_sift"
    presets = _PRESETS
    preset: Literal["authors"] = preset_field(_PRESETS, "authors")
    sifters: int = field(
        5, "Models whose weights of a sample are averaged.", unit="models", source=CODE, ge=1, le=50
    )
    warm_up_steps: int = field(
        307,
        "Ordinary steps of each sifter. The authors: one pass over the 39,209 images of GTSRB.",
        unit="steps",
        source=CODE,
        ge=1,
        le=100_000,
    )
    steps: int = field(
        307,
        "Steps in which each sifter learns weights and model in turn. The authors: one more pass.",
        unit="steps",
        source=CODE,
        ge=1,
        le=100_000,
    )
    batch_size: int = field(128, "Images in a step.", unit="images", source=CODE, ge=8, le=4096)
    learning_rate: float = field(
        1e-4, "Constant learning rate of AdamW for the models.", source=CODE, gt=0, le=1
    )
    weight_learning_rate: float = field(
        5e-4,
        "Learning rate of SGD for the small network that gives a weight to a loss.",
        source=CODE,
        gt=0,
        le=10,
    )
    virtual_learning_rate: float = field(
        1e-4,
        "Learning rate of the virtual step. The authors' code names 0.1, but loads the optimizer's state after that, "
        "and with it this rate.",
        source=CODE,
        gt=0,
        le=10,
    )
    kept_ratio: float = field(
        0.0255,
        "Size of the clean subset, as a share of each class. The authors keep 1,000 images of GTSRB.",
        unit="fraction",
        source=CODE,
        gt=0,
        le=0.5,
    )
    then: Literal["i_bau", "fine_tuning", "nothing"] = field(
        "i_bau",
        "The repair that gets the subset as its clean images, with its default settings. nothing: keep the victim.",
        source=f"{CODE}: quick_start.ipynb",
    )

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        training = self.fields("sifters", "kept_ratio", "then")
        return [
            *((f"sifter_{n}", training, SIFTER_EPOCHS) for n in range(1, self.sifters + 1)),
            ("detection", self.fields_with("kept_ratio"), 1),
            *([] if self.then == "nothing" else REPAIRS[self.then]().stages()),
        ]
