"""More detection defenses: purifications of the training set by the victim's activations."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from app.specs.base import Preset, field, preset_field
from app.specs.defenses.base import BENCHMARK, CleanSetDefense
from app.specs.defenses.detection import TOOLBOX, Detection
from app.specs.facts import DatasetFacts

BOX = "THUYimingLi/BackdoorBox"
DEMON = "TDteach/Demon-in-the-Variant"
GRAM = "wanlunsec/Beatrix"
DISTILLATION = "HanxunH/CognitiveDistillation"
ASSET = "ruoxi-jia-group/ASSET"

_FLARE_PRESETS = {"authors": Preset("the settings of the code that the authors publish.", BOX, {})}
_SCAN_PRESETS = {
    "authors": Preset("threshold e squared, as in the authors' code and in BackdoorBench.", DEMON, {}),
    "toolbox": Preset("threshold e: more classes are suspicious.", TOOLBOX, {"threshold": 2.718}),
}
_SPECTRE_PRESETS = {
    "toolbox": Preset("the poisoned number of a rate of 0.1, in the most spread class.", TOOLBOX, {}),
    "benchmark": Preset(
        "the poisoned number of a rate of 0.01, in every class.",
        BENCHMARK,
        {"expected_rate": 0.01, "classes": "all"},
    ),
}

_BEATRIX_PRESETS = {
    "authors": Preset("only classes that stand out count as infected.", GRAM, {}),
    "benchmark": Preset(
        "in every class what exceeds its threshold is flagged, at least 5 % of clean images.",
        BENCHMARK,
        {"classes": "all"},
    ),
}
_DISTILLATION_PRESETS = {
    "authors": Preset("the settings of the authors' code.", DISTILLATION, {}),
    "benchmark": Preset(
        "smoother masks, and one standard deviation as the threshold.",
        BENCHMARK,
        {"smoothness": 10.0, "threshold": 1.0},
    ),
}

_ASSET_PRESETS = {
    "authors": Preset("the settings of the authors' notebook, made for a ResNet-18.", ASSET, {}),
    "recommended": Preset(
        "ten times the learning rate, which a small network needs: on digits it raises the AUROC from 0.29 to 1.00.",
        "docs/results",
        {"learning_rate": 1e-3},
    ),
}


class Flare(Detection):
    """FLARE (Hou et al., 2025): cluster the samples by their least likely activation in each batch-norm layer."""

    needs_batch_norm: ClassVar[bool] = True
    name: Literal["flare"] = "flare"
    presets = _FLARE_PRESETS
    preset: Literal["authors"] = preset_field(_FLARE_PRESETS, "authors")
    min_cluster_size: int = field(
        100,
        "Smallest cluster. Poison of fewer images cannot be found; at most half of the training set.",
        unit="images",
        source=BOX,
        ge=2,
        le=100000,
    )
    stability: float = field(
        0.02,
        "Difference of density (inverse distance in the plane) by which the largest cluster must outlast its split "
        "from the others. If it does not, the deepest layer is left out and the rest is clustered again.",
        source=BOX,
        gt=0,
        le=1000,
    )
    depth: int = field(
        3,
        "Splits of the largest cluster that are tried before a layer is left out.",
        unit="splits",
        source=BOX,
        ge=1,
        le=100,
    )
    neighbors: int = field(
        40,
        "Points of a neighborhood, itself included, that the map to the plane keeps.",
        unit="points",
        source=BOX,
        ge=3,
        le=1000,
    )
    map_epochs: int | None = field(
        None,
        "Epochs of the map to the plane. Null: 500 up to 10,000 images, else 200.",
        unit="epochs",
        source="McInnes et al. 2018, published code",
        ge=1,
        le=10000,
    )

    def unfit(self, facts: DatasetFacts) -> Iterator[tuple[str, Any, str]]:
        if 2 * self.min_cluster_size > facts.train_size:
            most = facts.train_size // 2
            yield "min_cluster_size", self.min_cluster_size, f"at most {most}, half of the training images"


class Scan(Detection, CleanSetDefense):
    """SCAn (Tang et al., 2021): flag the smaller part of classes that two means explain far better than one does."""

    name: Literal["scan"] = "scan"
    presets = _SCAN_PRESETS
    preset: Literal["authors", "toolbox"] = preset_field(_SCAN_PRESETS, "authors")
    threshold: float = field(
        7.389,
        "Distance from the median likelihood ratio beyond which a class is suspicious. 7.389 is e squared.",
        unit="scaled median absolute deviations",
        source=f"{DEMON}; {BENCHMARK}",
        gt=0,
        le=1000,
    )


class Spectre(Detection):
    """SPECTRE (Hayase et al., 2021): whiten by a robust covariance, flag the highest quantum entropy scores."""

    name: Literal["spectre"] = "spectre"
    presets = _SPECTRE_PRESETS
    preset: Literal["toolbox", "benchmark"] = preset_field(_SPECTRE_PRESETS, "toolbox")
    expected_rate: float = field(
        0.1,
        "Expected poisoned share of the training set. 1.5 times this number of images is flagged in a suspected class, "
        "or 1.5 times a third of the class if that is less; a tenth in a class of fewer than 500 images.",
        unit="fraction",
        source=TOOLBOX,
        gt=0,
        le=0.5,
    )
    classes: Literal["most_spread", "all"] = field(
        "most_spread",
        "Classes in which images are flagged. most_spread: the one that is most spread after whitening. all: every "
        "class.",
        source=f"{TOOLBOX}; {BENCHMARK}",
    )


class Beatrix(Detection, CleanSetDefense):
    """Beatrix (Ma et al., 2023): flag samples whose channels go together as in no clean image of their class."""

    needs_spatial_maps: ClassVar[bool] = True
    name: Literal["beatrix"] = "beatrix"
    presets = _BEATRIX_PRESETS
    preset: Literal["authors", "benchmark"] = preset_field(_BEATRIX_PRESETS, "authors")
    clean_quantile: float = field(
        0.95,
        "Share of a class's clean images, by cross-validation, whose deviation is below its threshold.",
        unit="fraction",
        source=GRAM,
        ge=0.5,
        lt=1,
    )
    classes: Literal["infected", "all"] = field(
        "infected",
        "Classes in which images above the threshold are flagged. infected: those in which they differ from the others "
        "far more than in most classes. all: every class.",
        source=f"{GRAM}; {BENCHMARK}",
    )
    threshold: float = field(
        7.389,
        "Distance from the median difference beyond which a class is infected. 7.389 is e squared.",
        unit="scaled median absolute deviations",
        source="Ma et al. 2023, as in BackdoorBench's beatrix.py",
        gt=0,
        le=1000,
    )


class CognitiveDistillation(Detection, CleanSetDefense):
    """Cognitive distillation (Huang et al., 2023): flag images of which a small part suffices for the prediction."""

    name: Literal["cognitive_distillation"] = "cognitive_distillation"
    presets = _DISTILLATION_PRESETS
    preset: Literal["authors", "benchmark"] = preset_field(_DISTILLATION_PRESETS, "authors")
    steps: int = field(100, "Steps of a mask's training.", unit="steps", source=DISTILLATION, ge=1, le=10000)
    learning_rate: float = field(
        0.1,
        "Learning rate of Adam for t; the mask is tanh(t) / 2 + 1 / 2.",
        source=DISTILLATION,
        gt=0,
        le=10,
    )
    mask_cost: float = field(
        0.01, "Weight of the mask's size, the sum over its pixels.", source=DISTILLATION, ge=0, le=10
    )
    smoothness: float = field(
        1.0, "Weight of the mask's total variation.", source=DISTILLATION, ge=0, le=1000
    )
    threshold: float = field(
        0.5,
        "How much smaller than the clean images' mean a mask is from which an image is flagged.",
        unit="standard deviations",
        source=DISTILLATION,
        gt=0,
        le=100,
    )

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        detection, *retraining = super().stages()
        return [(*detection[:2], self.steps), *retraining]


class Asset(Detection, CleanSetDefense):
    """ASSET (Pan et al., 2023): flag high losses of a model made blind to clean images and wrong on suspects."""

    needs_spatial_maps: ClassVar[bool] = True
    name: Literal["asset"] = "asset"
    presets = _ASSET_PRESETS
    preset: Literal["authors", "recommended"] = preset_field(_ASSET_PRESETS, "authors")
    steps: int = field(
        98,
        "Batches of the training set, one pass over 50,000 images for its authors.",
        unit="batches",
        source=ASSET,
        ge=1,
        le=100000,
    )
    batch_size: int = field(
        512,
        "Images of a batch of the training set, and of one of the clean set; at most as many as there are.",
        unit="images",
        source=ASSET,
        ge=8,
        le=4096,
    )
    learning_rate: float = field(1e-4, "Learning rate of Adam, constant.", source=ASSET, gt=0, le=10)
    separation_steps: int = field(
        100,
        "Pairs of steps, on the batch and on clean images, in which a small network learns to tell them apart.",
        unit="steps",
        source=ASSET,
        ge=1,
        le=10000,
    )
