"""Adaptively splitting dataset."""

from collections.abc import Iterator
from typing import Any, Literal

from app.specs.base import Preset, field, preset_field
from app.specs.defenses.base import CleanSetDefense
from app.specs.defenses.mixmatch import MixMatchDefense
from app.specs.facts import DatasetFacts

CODE = "KuofengGao/ASD, the authors' code"
SHORTER = f"chosen here: ten trainings of the victim at most; {CODE}"

_PRESETS = {
    "recommended": Preset(
        "the authors' rates and losses with lengths that cost eight trainings of the victim (30 epochs).",
        SHORTER,
        {},
    ),
    "authors": Preset(
        "the settings of the authors' code for CIFAR-10, with ten clean images per class. About 22 trainings of the "
        "victim, and far more on a small dataset.",
        CODE,
        {
            "clean_ratio": 0.002,
            "growth_epochs": 60,
            "loss_epochs": 30,
            "meta_epochs": 30,
            "mixmatch_steps": 1024,
            "ramp_epochs": 120,
        },
    ),
}


class Asd(MixMatchDefense, CleanSetDefense):
    """ASD (Gao et al., 2023): the pool of samples that keep their labels grows from a few clean images."""

    name: Literal["asd"] = "asd"
    presets = _PRESETS
    preset: Literal["recommended", "authors"] = preset_field(_PRESETS, "recommended")
    ramp_epochs: int = field(
        100,
        "Epochs in which the weight of the unlabeled part rises from 0. The authors: the length of the training.",
        unit="epochs",
        source=SHORTER,
        ge=0,
        le=2000,
    )
    growth_epochs: int = field(
        50,
        "First phase: the pool is the clean images and those of the lowest loss in each class.",
        unit="epochs",
        source=SHORTER,
        ge=1,
        le=2000,
    )
    growth_interval: int = field(
        5, "Epochs of the first phase after which more are taken.", unit="epochs", source=CODE, ge=1, le=500
    )
    growth: int = field(
        10, "How many more of each class are taken then.", unit="images", source=CODE, ge=1, le=10_000
    )
    loss_epochs: int = field(
        25,
        "Second phase: the pool is the half of all samples with the lowest loss.",
        unit="epochs",
        source=SHORTER,
        ge=0,
        le=2000,
    )
    meta_epochs: int = field(
        25,
        "Third phase: the pool is the half of all samples whose loss falls least when a copy of the model is trained "
        "on everything for an epoch.",
        unit="epochs",
        source=SHORTER,
        ge=0,
        le=2000,
    )
    meta_learning_rate: float = field(0.015, "Learning rate of Adam for that copy.", source=CODE, gt=0, le=1)
    labeled_ratio: float = field(
        0.5,
        "Share of all samples in the pool in the second and third phase.",
        unit="fraction",
        source=CODE,
        gt=0,
        lt=1,
    )

    def unfit(self, facts: DatasetFacts) -> Iterator[tuple[str, Any, str]]:
        if int(self.labeled_ratio * facts.train_size) < facts.classes:
            least = facts.classes / facts.train_size
            yield "labeled_ratio", self.labeled_ratio, f"at least {least:.3g}, one image per class"

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        epochs = self.growth_epochs + self.loss_epochs + self.meta_epochs
        return [("training", self.fields(), 2 * epochs + self.meta_epochs)]
