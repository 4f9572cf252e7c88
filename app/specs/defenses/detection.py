"""Detection defenses, which score the samples or classes of the poisoned set with the trained victim."""

from typing import Any, ClassVar, Literal

from app.specs.base import Preset, field, preset_field
from app.specs.defenses.base import BENCHMARK, Defense, HeldOutDefense, Kind

CHEN = "Chen et al. 2018, section 5"
ART = "the Adversarial Robustness Toolbox"
TRAN = "Tran et al. 2018, algorithm 1"
TOOLBOX = "vtu81/backdoor-toolbox"
GAO = "Gao et al. 2019, published code"
WANG = "Wang et al. 2019, published code"

_CLUSTERING_PRESETS = {
    "recommended": Preset(
        "the smaller cluster of a class is suspicious below 0.35 of the class, as in the Adversarial Robustness "
        "Toolbox and in BackdoorBench's code; it costs no training and flags few clean images.",
        ART,
        {},
    ),
    "paper": Preset(
        "exclusionary reclassification of the smaller cluster of every class, with threshold 1.",
        CHEN,
        {"analysis": "exclusionary_reclassification"},
    ),
    "benchmark": Preset(
        "the smaller cluster of every class is flagged, poisoned or not.", BENCHMARK, {"analysis": "smaller"}
    ),
}
_SPECTRAL_PRESETS = {
    "recommended": Preset(
        "epsilon as a share of each class, as BackdoorBench's percentile 85: it needs no knowledge of the "
        "poisoning rate.",
        f"{TRAN}; {BENCHMARK}",
        {},
    ),
    "toolbox": Preset(
        "epsilon as the number of poisoned images in the whole set, at rate 0.1, at most half of a class.",
        TOOLBOX,
        {"expected_rate": 0.1},
    ),
}
_CLEANSE_PRESETS = {
    "benchmark": Preset("the settings of BackdoorBench, on the authors' form of the mask.", BENCHMARK, {})
}
STRIP_PRESETS = {
    "recommended": Preset(
        "64 overlays and the 5 % quantile of a normal fit to the clean entropies, as in the paper; cheaper than 100.",
        "Gao et al. 2019, section 4",
        {},
    ),
    "benchmark": Preset(
        "100 overlays and the empirical 10 % quantile, as BackdoorBench calls it.",
        BENCHMARK,
        {"overlays": 100, "false_positive_rate": 0.1, "threshold": "quantile"},
    ),
}

Then = Literal["purge_and_retrain", "nothing"]
EntropyThreshold = Literal["normal_fit", "quantile"]
RETRAINING_EPOCHS = 30  # for progress only; the retraining itself uses the experiment's number


class Detection(Defense):
    """Base class of detections that flag samples."""

    kind: ClassVar[Kind] = "detection"
    then: Then = field(
        "purge_and_retrain",
        "What follows detection. purge_and_retrain: train a new model on the samples that were not flagged, with the "
        "experiment's recipe. nothing: keep the victim.",
        source=TRAN,
    )

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        detection = ("detection", self.fields("then"), 1)
        return [detection] if self.then == "nothing" else [detection, ("retrain", {}, RETRAINING_EPOCHS)]


def overlays_field() -> Any:
    return field(
        64,
        "Number of clean images overlaid on each sample, one at a time.",
        unit="images",
        source="BackdoorBench's class default, which its call replaces by 100",
        ge=1,
        le=1000,
    )


def overlay_weight_field() -> Any:
    return field(
        1.0,
        "Weight of the overlay, which is added to the sample at full intensity and clipped at 255. Averaging the two "
        "instead would weaken small patches.",
        source=GAO,
        gt=0,
        le=10,
    )


def false_positive_rate_field() -> Any:
    return field(
        0.05,
        "Share of clean images to flag (the false rejection rate): sets the threshold.",
        unit="fraction",
        source="BackdoorBench's class default, which its call replaces by 0.1",
        gt=0,
        lt=0.5,
    )


def entropy_threshold_field() -> Any:
    return field(
        "normal_fit",
        "How the threshold follows from the clean set's entropies: the quantile of a normal distribution fitted to "
        "them, as in the paper, or their empirical quantile, as in BackdoorBench.",
        source=f"Gao et al. 2019, section 4; {BENCHMARK}",
    )


class SpectralSignatures(Detection):
    """Spectral signatures (Tran et al., 2018): in each class, flag the outliers along the top singular direction."""

    name: Literal["spectral_signatures"] = "spectral_signatures"
    presets = _SPECTRAL_PRESETS
    preset: Literal["recommended", "toolbox"] = preset_field(_SPECTRAL_PRESETS, "recommended")
    expected_share: float = field(
        0.1,
        "Expected poisoned share of a class. 1.5 times this share of each class is flagged, at most all but one image.",
        unit="fraction",
        source=f"{TRAN}; {BENCHMARK}",
        gt=0,
        le=0.6,
    )
    expected_rate: float | None = field(
        None,
        "Expected poisoned share of the whole training set. If given, it replaces expected_share: 1.5 times this "
        "number of images is flagged in every class, at most half of the class.",
        unit="fraction",
        source=TOOLBOX,
        gt=0,
        le=0.5,
    )


class ActivationClustering(Detection):
    """Activation clustering (Chen et al., 2018): split each class into two feature clusters, flag anomalous ones."""

    name: Literal["activation_clustering"] = "activation_clustering"
    presets = _CLUSTERING_PRESETS
    preset: Literal["recommended", "paper", "benchmark"] = preset_field(_CLUSTERING_PRESETS, "recommended")
    analysis: Literal["relative_size", "smaller", "exclusionary_reclassification"] = field(
        "relative_size",
        "Which clusters are flagged. relative_size: the smaller one of a class, if its share is below max_size. "
        "smaller: the smaller one of every class. exclusionary_reclassification: the smaller one of a class, unless a "
        "model trained without the smaller clusters gives it its label more often than reclassification_threshold "
        "times the most common other class.",
        source=f"{CHEN}; {ART}",
    )
    components: int = field(
        10, "Dimensions that features are reduced to.", source="Chen et al. 2018, section 4", ge=2, le=256
    )
    max_size: float = field(
        0.35,
        "Share of its class below which the smaller cluster is flagged by relative_size.",
        unit="fraction",
        source=ART,
        gt=0,
        le=0.5,
    )
    min_silhouette: float | None = field(
        None,
        "Smallest silhouette score at which a cluster is flagged, in every analysis. Null: any. Chen et al. name 0.10 "
        "to 0.15 for clean data, the Adversarial Robustness Toolbox takes 0.1.",
        source=f"{CHEN}; {ART}",
        ge=-1,
        le=1,
    )
    reclassification_threshold: float = field(
        1.0,
        "Largest ratio l / p of images of a cluster that keep their label to images given the most common other "
        "class, at which the cluster is flagged.",
        source=f"{CHEN}; {ART}",
        gt=0,
        le=1000,
    )

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        stages = super().stages()
        if self.analysis != "exclusionary_reclassification":
            return stages
        return [("reclassification", self.fields_with("components"), RETRAINING_EPOCHS), *stages]


class Strip(Detection, HeldOutDefense):
    """STRIP (Gao et al., 2019): flag images whose prediction does not change when other images are overlaid."""

    name: Literal["strip"] = "strip"
    presets = STRIP_PRESETS
    preset: Literal["recommended", "benchmark"] = preset_field(STRIP_PRESETS, "recommended")
    overlays: int = overlays_field()
    overlay_weight: float = overlay_weight_field()
    false_positive_rate: float = false_positive_rate_field()
    threshold: EntropyThreshold = entropy_threshold_field()


class NeuralCleanse(HeldOutDefense):
    """Neural Cleanse (Wang et al., 2019): invert a trigger for each class, flag abnormally small ones, unlearn them."""

    kind: ClassVar[Kind] = "detection"
    name: Literal["neural_cleanse"] = "neural_cleanse"
    presets = _CLEANSE_PRESETS
    preset: Literal["benchmark"] = preset_field(_CLEANSE_PRESETS, "benchmark")
    epochs: int = field(
        80,
        "Passes over the clean set to invert the triggers.",
        unit="epochs",
        source=BENCHMARK,
        ge=1,
        le=1000,
    )
    learning_rate: float = field(
        0.1,
        "Learning rate of Adam for masks and patterns, which are (tanh(t) + 1) / 2 of what is learned.",
        source=WANG,
        gt=0,
        le=10,
    )
    mask_cost: float = field(
        1e-3,
        "Initial weight of the mask's size; adjusted so that the trigger keeps working.",
        source=BENCHMARK,
        gt=0,
        le=10,
    )
    success: float = field(
        0.98,
        "Share of clean images that an inverted trigger must drive to its class.",
        unit="fraction",
        source=BENCHMARK,
        gt=0,
        le=1,
    )
    anomaly_threshold: float = field(
        2.0,
        "Distance below the median mask size beyond which a class is flagged.",
        unit="scaled median absolute deviations",
        source="Wang et al. 2019, section 4.2",
        gt=0,
        le=100,
    )
    then: Literal["unlearn", "nothing"] = field(
        "unlearn",
        "What follows detection. unlearn: fine-tune on the clean set, part of it with the flagged triggers and true "
        "labels. nothing: keep the victim.",
        source=WANG,
    )
    unlearning_epochs: int = field(
        20, "Unlearning passes over the clean set.", unit="epochs", source=BENCHMARK, ge=1, le=1000
    )
    unlearning_learning_rate: float = field(
        0.01, "Peak learning rate of unlearning, with a cosine schedule.", source=BENCHMARK, gt=0, le=10
    )
    stamped_share: float = field(
        0.2,
        "Share of each batch that carries a flagged trigger.",
        unit="fraction",
        source="Wang et al. 2019, section 6.2",
        gt=0,
        le=1,
    )

    @property
    def searches_data(self) -> bool:
        return False

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        unlearning = ("unlearning_epochs", "unlearning_learning_rate", "stamped_share")
        inversion = ("detection", self.fields("then", *unlearning), self.epochs)
        if self.then == "nothing":
            return [inversion]
        return [inversion, ("repair", self.fields_with(*unlearning), self.unlearning_epochs)]
