"""Detection defenses, which score the samples or classes of the poisoned set with the trained victim."""

from typing import Any, ClassVar, Literal

from app.specs.base import field
from app.specs.defenses.base import BENCHMARK, Defense, HeldOutDefense, Kind

Then = Literal["purge_and_retrain", "nothing"]
RETRAINING_EPOCHS = 30  # for progress only; the retraining itself uses the experiment's number


def _follow_up() -> Any:
    return field(
        "purge_and_retrain",
        "What follows detection. purge_and_retrain: train a new model on the samples that were not flagged, with the "
        "experiment's recipe. nothing: keep the victim.",
    )


def _stages(defense: Defense, then: Then) -> list[tuple[str, dict[str, Any], int]]:
    detection = ("detection", defense.fields("then"), 1)
    return [detection] if then == "nothing" else [detection, ("retrain", {}, RETRAINING_EPOCHS)]


class SpectralSignatures(Defense):
    """Spectral signatures (Tran et al., 2018): in each class, flag the outliers along the top singular direction."""

    kind: ClassVar[Kind] = "detection"
    name: Literal["spectral_signatures"] = "spectral_signatures"
    expected_share: float = field(
        0.1,
        "Expected poisoned share of a class. 1.5 times this share of each class is flagged, at most all but one image.",
        unit="fraction",
        source=f"Tran et al. 2018, algorithm 1; {BENCHMARK}",
        gt=0,
        le=0.6,
    )
    then: Then = _follow_up()

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        return _stages(self, self.then)


class ActivationClustering(Defense):
    """Activation clustering (Chen et al., 2018): split each class into two feature clusters, flag anomalous ones."""

    kind: ClassVar[Kind] = "detection"
    name: Literal["activation_clustering"] = "activation_clustering"
    components: int = field(
        10, "Dimensions that features are reduced to.", source="Chen et al. 2018, section 4", ge=2, le=256
    )
    max_size: float = field(
        0.35,
        "Largest share of its class that a suspicious cluster may have.",
        unit="fraction",
        source="the Adversarial Robustness Toolbox",
        gt=0,
        le=0.5,
    )
    min_silhouette: float = field(
        0.45,
        "Smallest silhouette score at which clusters are suspicious.",
        source="docs/defenses.md: digits, seeds 7 and 8; Chen et al. 2018, section 5, has 0.10 to 0.15",
        ge=-1,
        le=1,
    )
    then: Then = _follow_up()

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        return _stages(self, self.then)


class Strip(HeldOutDefense):
    """STRIP (Gao et al., 2019): flag images whose prediction does not change when other images are overlaid."""

    kind: ClassVar[Kind] = "detection"
    name: Literal["strip"] = "strip"
    overlays: int = field(
        64,
        "Number of clean images overlaid on each sample, one at a time.",
        unit="images",
        source=BENCHMARK,
        ge=1,
        le=1000,
    )
    overlay_weight: float = field(
        1.0,
        "Weight of the overlay, which is added to the sample at full intensity and clipped at 255. Averaging the two "
        "instead would weaken small patches.",
        source="Gao et al. 2019, published code",
        gt=0,
        le=10,
    )
    false_positive_rate: float = field(
        0.05,
        "Share of clean images to flag: sets the threshold, a quantile of the clean set's entropies.",
        unit="fraction",
        source=BENCHMARK,
        gt=0,
        lt=0.5,
    )
    then: Then = _follow_up()

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        return _stages(self, self.then)


class NeuralCleanse(HeldOutDefense):
    """Neural Cleanse (Wang et al., 2019): invert a trigger for each class, flag abnormally small ones, unlearn them."""

    kind: ClassVar[Kind] = "detection"
    name: Literal["neural_cleanse"] = "neural_cleanse"
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
        "Learning rate of Adam for masks and patterns.",
        source="Wang et al. 2019, published code",
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

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        unlearning = ("unlearning_epochs", "unlearning_learning_rate", "stamped_share")
        inversion = ("detection", self.fields("then", *unlearning), self.epochs)
        if self.then == "nothing":
            return [inversion]
        return [inversion, ("repair", self.fields_with(*unlearning), self.unlearning_epochs)]
