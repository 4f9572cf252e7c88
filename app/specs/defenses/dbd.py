"""Decoupling-based backdoor defense."""

from collections.abc import Iterator
from typing import Any, Literal

from app.specs.base import Preset, field, preset_field
from app.specs.defenses.base import BENCHMARK
from app.specs.defenses.mixmatch import DBD_CODE, MixMatchDefense
from app.specs.facts import DatasetFacts

SHORTER = f"chosen here: ten trainings of the victim at most; {DBD_CODE}"

_PRESETS = {
    "recommended": Preset(
        "the authors' rates and losses with lengths that cost eight trainings of the victim (30 epochs).",
        SHORTER,
        {},
    ),
    "authors": Preset(
        "the settings of the authors' code for CIFAR-10. Features are taken after 100 epochs of a schedule of 1000. "
        "About 40 trainings of the victim, and far more on a small dataset.",
        DBD_CODE,
        {
            "feature_epochs": 100,
            "feature_schedule_epochs": 1000,
            "head_epochs": 10,
            "mixmatch_epochs": 190,
            "mixmatch_steps": 1024,
            "ramp_epochs": 190,
        },
    ),
    "benchmark": Preset(
        "BackdoorBench's: as the authors', with 100 epochs of MixMatch, in which the weight of the unlabeled part does "
        "not reach its full value.",
        BENCHMARK,
        {
            "feature_epochs": 100,
            "feature_schedule_epochs": 1000,
            "head_epochs": 10,
            "mixmatch_epochs": 100,
            "mixmatch_steps": 1024,
            "ramp_epochs": 190,
        },
    ),
}


class Dbd(MixMatchDefense):
    """DBD (Huang et al., 2022): features without labels, then labels for the samples that agree with the features."""

    name: Literal["dbd"] = "dbd"
    presets = _PRESETS
    preset: Literal["recommended", "authors", "benchmark"] = preset_field(_PRESETS, "recommended")
    feature_epochs: int = field(
        80,
        "Self-supervised training of the features. An epoch sees every image twice.",
        unit="epochs",
        source=SHORTER,
        ge=1,
        le=2000,
    )
    feature_schedule_epochs: int | None = field(
        None,
        "Length of the cosine schedule of that training, which may end before it. Null: feature_epochs.",
        unit="epochs",
        source=SHORTER,
        ge=1,
        le=10_000,
    )
    feature_batch_size: int = field(
        512, "Images in a step of that training.", unit="images", source=DBD_CODE, ge=2, le=65536
    )
    feature_learning_rate: float = field(
        0.4, "Peak learning rate of that training.", source=DBD_CODE, gt=0, le=10
    )
    feature_weight_decay: float = field(1e-4, "L2 penalty of that training.", source=DBD_CODE, ge=0, le=1)
    temperature: float = field(0.5, "Temperature of the contrastive loss.", source=DBD_CODE, gt=0, le=10)
    head_epochs: int = field(
        100,
        "Training of the last layer on those features. The authors' 10 epochs are 120 steps on digits, too few for it "
        "to tell the classes apart.",
        unit="epochs",
        source=f"chosen here; {DBD_CODE}",
        ge=1,
        le=1000,
    )
    labeled_ratio: float = field(
        0.5,
        "Share of the training set, of the lowest loss, that keeps its labels. It is chosen again before every epoch.",
        unit="fraction",
        source=DBD_CODE,
        gt=0,
        lt=1,
    )
    mixmatch_epochs: int = field(
        30, "Semi-supervised training.", unit="epochs", source=SHORTER, ge=1, le=2000
    )

    def unfit(self, facts: DatasetFacts) -> Iterator[tuple[str, Any, str]]:
        labeled = int(self.labeled_ratio * facts.train_size)
        if not facts.classes <= labeled < facts.train_size:
            least = facts.classes / facts.train_size
            allowed = f"at least {least:.3g}, one image per class, with an image left without label"
            yield "labeled_ratio", self.labeled_ratio, allowed

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        semi = ("mixmatch_", "unlabeled_weight", "ramp_epochs", "labeled_ratio")
        return [
            ("features", self.fields_with("feature_", "temperature"), 2 * self.feature_epochs),
            ("head", self.fields_with("head_epochs", "mixmatch_learning_rate"), -(-self.head_epochs // 3)),
            ("training", self.fields_with(*semi), 2 * self.mixmatch_epochs),
        ]
