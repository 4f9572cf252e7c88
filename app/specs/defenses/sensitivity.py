"""Defenses that separate samples by how much a change of the image changes their features."""

from collections.abc import Iterator
from typing import Any, Literal

from app.specs.base import Preset, field, preset_field
from app.specs.defenses.base import BENCHMARK, Defense
from app.specs.facts import DatasetFacts

CODE = "SCLBD/Effective_backdoor_defense, the authors' code"
SHORTER = f"chosen here: ten trainings of the victim at most; {CODE}"


class SensitivityDefense(Defense):
    """Base class of defenses with the sample-distinguishment module of Chen et al. 2022."""

    biased_epochs: int = field(
        2,
        "Training without augmentation of the model whose features are compared, by which it learns the trigger.",
        unit="epochs",
        source=CODE,
        ge=1,
        le=500,
    )
    tuning_epochs: int = field(
        10,
        "Training of that model to move the centers of the classes' features apart.",
        unit="epochs",
        source=CODE,
        ge=0,
        le=500,
    )
    biased_learning_rate: float = field(
        0.01,
        "Constant learning rate of both. The authors' cosine schedule of 100 epochs falls by 4 % in these twelve.",
        source=CODE,
        gt=0,
        le=10,
    )
    trusted_ratio: float = field(
        0.2,
        "Share of the training set, of the least sensitive samples, that is taken to be clean.",
        unit="fraction",
        source=CODE,
        gt=0,
        lt=1,
    )
    suspected_ratio: float = field(
        0.05,
        "Share of the training set, of the most sensitive samples, that is taken to be poisoned.",
        unit="fraction",
        source=CODE,
        gt=0,
        lt=1,
    )

    def unfit(self, facts: DatasetFacts) -> Iterator[tuple[str, Any, str]]:
        size = facts.train_size
        clean, poisoned = int(self.trusted_ratio * size), int(self.suspected_ratio * size)
        if clean < facts.classes:
            yield (
                "trusted_ratio",
                self.trusted_ratio,
                f"at least {facts.classes / size:.3g}, one image per class",
            )
        if poisoned < 1:
            yield "suspected_ratio", self.suspected_ratio, f"at least {1 / size:.3g}, one image"
        if clean + poisoned > size:
            yield (
                "suspected_ratio",
                self.suspected_ratio,
                f"at most {1 - self.trusted_ratio:.3g}, 1 - trusted_ratio",
            )

    def separation(self) -> list[tuple[str, dict[str, Any], int]]:
        """The stages that both defenses begin with."""
        return [
            ("biased", self.fields_with("biased_"), self.biased_epochs),
            (
                "separation",
                self.fields_with("tuning_", "trusted_ratio", "suspected_ratio"),
                self.tuning_epochs,
            ),
        ]


_ST_PRESETS = {
    "recommended": Preset(
        "the authors' settings with half of their epochs for the features: seven trainings of the victim (30 epochs).",
        SHORTER,
        {},
    ),
    "authors": Preset("the settings of the authors' README for CIFAR-10.", CODE, {"feature_epochs": 200}),
    "benchmark": Preset(
        "BackdoorBench's: as the authors', with its own batch size.",
        BENCHMARK,
        {"feature_epochs": 200, "feature_batch_size": 128},
    ),
}


class DSt(SensitivityDefense):
    """D-ST (Chen et al., 2022): features from partly trusted labels, then a last layer for trusted samples."""

    name: Literal["d_st"] = "d_st"
    presets = _ST_PRESETS
    preset: Literal["recommended", "authors", "benchmark"] = preset_field(_ST_PRESETS, "recommended")
    feature_epochs: int = field(
        100,
        "Semi-supervised contrastive training of the features. An epoch sees every image twice.",
        unit="epochs",
        source=SHORTER,
        ge=1,
        le=2000,
    )
    feature_batch_size: int = field(
        512,
        "Images in a step of that training and of the last layer's.",
        unit="images",
        source=CODE,
        ge=2,
        le=65536,
    )
    feature_learning_rate: float = field(
        0.5,
        "Peak learning rate of that training, reached after a tenth of it at most; then cosine decay.",
        source=CODE,
        gt=0,
        le=10,
    )
    feature_weight_decay: float = field(1e-4, "L2 penalty of that training.", source=CODE, ge=0, le=1)
    temperature: float = field(0.1, "Temperature of the contrastive loss.", source=CODE, gt=0, le=10)
    head_epochs: int = field(10, "Training of the last layer.", unit="epochs", source=CODE, ge=1, le=500)
    head_learning_rate: float = field(
        5.0,
        "Learning rate of the last layer, to which it rises from 0.01 linearly.",
        source=CODE,
        gt=0,
        le=100,
    )
    poison_weight: float = field(
        0.001,
        "Weight of the loss of poisoned samples, which the last layer increases.",
        source=CODE,
        ge=0,
        le=1,
    )

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        return [
            *self.separation(),
            ("features", self.fields_with("feature_", "temperature"), 2 * self.feature_epochs),
            ("head", self.fields_with("head_", "poison_weight", "feature_batch_size"), self.head_epochs),
        ]


_BR_PRESETS = {
    "authors": Preset(
        "the settings of the authors' README for CIFAR-10. The backdoored model is trained by the experiment's recipe; "
        "theirs is trained for 200 epochs. The last model is kept, where they keep the best by test accuracy minus "
        "attack success.",
        CODE,
        {},
    ),
}


class DBr(SensitivityDefense):
    """D-BR (Chen et al., 2022): samples that seem poisoned are unlearned, and those that seem clean learned again."""

    name: Literal["d_br"] = "d_br"
    presets = _BR_PRESETS
    preset: Literal["authors"] = preset_field(_BR_PRESETS, "authors")
    rounds: int = field(
        20,
        "Rounds of one pass over the samples to unlearn and one over those to relearn.",
        unit="rounds",
        source=CODE,
        ge=1,
        le=1000,
    )
    least_steps: int = field(
        20,
        "Least length of each pass; the samples are repeated. On 50,000 images the passes are no longer for it: they "
        "have 20 and 79 steps.",
        unit="steps",
        source=f"chosen here: on small sets the authors' passes have a step or two; {CODE}",
        ge=1,
        le=10_000,
    )
    unlearning_learning_rate: float = field(1e-4, "Constant learning rate of both.", source=CODE, gt=0, le=1)

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        return [
            *self.separation(),
            ("training", {}, 30),
            (
                "unlearning",
                self.fields_with("rounds", "least_steps", "unlearning_"),
                max(1, self.rounds // 4),
            ),
        ]
