"""Confusion training."""

from typing import Any, Literal

from app.specs.base import Preset, field, preset_field
from app.specs.defenses.base import CleanSetDefense
from app.specs.defenses.detection import Detection

CODE = "Unispac/Fight-Poison-With-Poison, the authors' code"
SCALED = f"chosen here: ten trainings of the victim at most; {CODE}"

ROUNDS = 6
PASSES = 96
"""Of the authors' 6,000 batches of 32 over their 2,000 clean images."""

_PRESETS = {
    "recommended": Preset(
        "the authors' rates and epochs, with a number of steps that follows the clean set: 6.5 trainings of the victim "
        "(30 epochs), also on a small set.",
        SCALED,
        {},
    ),
    "authors": Preset(
        "the settings of the authors' code for CIFAR-10, with 2,000 clean images. 6.3 trainings of the victim, and far "
        "more on a small dataset.",
        CODE,
        {"clean_ratio": 0.04, "confusion_steps": 6000},
    ),
}


class ConfusionTraining(Detection, CleanSetDefense):
    """Confusion training (Qi et al., 2023): flag what a model still fits after training on wrong labels."""

    name: Literal["confusion_training"] = "confusion_training"
    presets = _PRESETS
    preset: Literal["recommended", "authors"] = preset_field(_PRESETS, "recommended")
    epochs: int = field(
        100,
        "Ordinary training before each of the first two of six rounds; two fifths of it before each later one. A "
        "round trains on the samples that the one before kept: 1/2, 1/5, 1/25, 1/50 and 1/100 of all.",
        unit="epochs",
        source=CODE,
        ge=1,
        le=1000,
    )
    confusion_steps: int | None = field(
        None,
        "Steps on wrong labels in each of the first four rounds, rounded to whole passes; a third in the last two. The "
        f"authors have 6,000. Null: {PASSES} passes over the clean set.",
        unit="steps",
        source=SCALED,
        ge=1,
        le=100_000,
    )
    batch_size: int = field(
        32,
        "Images in a step, and clean images in a step on wrong labels; at most as many as there are.",
        unit="images",
        source=CODE,
        ge=2,
        le=4096,
    )
    learning_rate: float = field(
        0.01, "Constant learning rate of the ordinary training.", source=CODE, gt=0, le=10
    )
    first_confusion_learning_rate: float = field(
        0.001,
        "Constant learning rate of the steps on wrong labels in the first three rounds.",
        source=CODE,
        gt=0,
        le=10,
    )
    last_confusion_learning_rate: float = field(
        0.01,
        "The same in the last three rounds; the authors have 0.001 for GTSRB.",
        source=CODE,
        gt=0,
        le=10,
    )
    threshold: float = field(
        2.0,
        "Likelihood of two clusters relative to one, per sample, from which a class is suspicious.",
        source=CODE,
        gt=1,
        le=1000,
    )
    lower_threshold: float = field(
        1.5, "The same for the class where it is highest.", source=CODE, gt=1, le=1000
    )

    def epochs_of(self, n: int) -> int:
        """Epochs of ordinary training before round ``n``, from 1."""
        return self.epochs if n <= 2 else max(1, round(0.4 * self.epochs))

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        training = self.fields_with("epochs", "batch_size", "learning_rate")
        confusion = self.fields("then", "epochs", "learning_rate", "threshold", "lower_threshold")
        rounds: list[tuple[str, dict[str, Any], int]] = []
        for n, expected in enumerate((100, 50, 8, 2, 1, 2), 1):
            rounds += [(f"pretraining_{n}", training, expected), (f"confusion_{n}", confusion, 6)]
        detection, *retraining = super().stages()
        return [*rounds, (detection[0], self.fields_with("threshold", "lower_threshold"), 1), *retraining]
