"""Detection defenses: they score samples or classes of the poisoned set with the help of the trained victim."""

from typing import Any, ClassVar, Literal

from app.specs.base import field
from app.specs.defenses.base import BENCHMARK, CleanSetDefense, Defense, Kind

Then = Literal["purge_and_retrain", "nothing"]
RETRAINING = 30  # epochs assumed for the progress bar; the experiment's own number is used


def _then() -> Any:
    return field(
        "purge_and_retrain",
        "purge_and_retrain: train a fresh model, by the experiment's recipe, on what was not flagged. "
        "nothing: keep the victim as it is.",
    )


def _stages(defense: Defense, then: Then) -> list[tuple[str, dict[str, Any], int]]:
    detection = ("detection", defense.fields("then"), 1)
    return [detection] if then == "nothing" else [detection, ("retrain", {}, RETRAINING)]


class SpectralSignatures(Defense):
    """Spectral signatures (Tran et al., 2018): in each class, drop what lies far out along the top direction."""

    kind: ClassVar[Kind] = "detection"
    name: Literal["spectral_signatures"] = "spectral_signatures"
    expected_share: float = field(
        0.1,
        "Poisoned share of a class to expect; 1.5 times as much of every class is flagged, and at most all but one.",
        unit="fraction",
        source=f"Tran et al. 2018, algorithm 1; {BENCHMARK}",
        gt=0,
        le=0.6,
    )
    then: Then = _then()

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        return _stages(self, self.then)


class ActivationClustering(Defense):
    """Activation clustering (Chen et al., 2018): in each class, split the features in two and suspect the odd part."""

    kind: ClassVar[Kind] = "detection"
    name: Literal["activation_clustering"] = "activation_clustering"
    components: int = field(
        10, "Dimensions that the features are reduced to.", source="Chen et al. 2018, section 4", ge=2, le=256
    )
    max_size: float = field(
        0.35,
        "A cluster with a smaller share of its class is suspicious.",
        unit="fraction",
        source="the Adversarial Robustness Toolbox",
        gt=0,
        le=0.5,
    )
    min_silhouette: float = field(
        0.45,
        "Only clusters that are separated at least this well are suspicious.",
        source="docs/defenses.md: digits, seeds 7 and 8; Chen et al. 2018, section 5, has 0.10 to 0.15",
        ge=-1,
        le=1,
    )
    then: Then = _then()

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        return _stages(self, self.then)


class Strip(CleanSetDefense):
    """STRIP (Gao et al., 2019): a triggered image keeps its class whatever is laid over it."""

    kind: ClassVar[Kind] = "detection"
    name: Literal["strip"] = "strip"
    overlays: int = field(
        64, "Clean images laid over each sample.", unit="images", source=BENCHMARK, ge=1, le=1000
    )
    overlay_weight: float = field(
        1.0,
        "Weight of the overlay, which is added to the undimmed sample; sums above 255 are cut off. Dimming the sample "
        "(0.5 of each) fades small patches away.",
        source="Gao et al. 2019, published code",
        gt=0,
        le=10,
    )
    false_positive_rate: float = field(
        0.05,
        "Share of clean images that may be flagged; sets the threshold on the clean set's entropies.",
        unit="fraction",
        source=BENCHMARK,
        gt=0,
        lt=0.5,
    )
    then: Then = _then()

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        return _stages(self, self.then)


class NeuralCleanse(CleanSetDefense):
    """Neural Cleanse (Wang et al., 2019): the class that the smallest trigger leads to; that trigger is unlearned."""

    kind: ClassVar[Kind] = "detection"
    name: Literal["neural_cleanse"] = "neural_cleanse"
    epochs: int = field(
        80, "Passes over the clean set to invert triggers.", unit="epochs", source=BENCHMARK, ge=1, le=1000
    )
    learning_rate: float = field(
        0.1,
        "Learning rate of Adam on masks and patterns.",
        source="Wang et al. 2019, published code",
        gt=0,
        le=10,
    )
    mask_cost: float = field(
        1e-3,
        "First weight of the mask's size; raised and lowered so that the trigger keeps working.",
        source=BENCHMARK,
        gt=0,
        le=10,
    )
    success: float = field(
        0.98,
        "Share of the clean images that an inverted trigger has to lead to its class.",
        unit="fraction",
        source=BENCHMARK,
        gt=0,
        le=1,
    )
    anomaly_threshold: float = field(
        2.0,
        "Classes whose mask is smaller than the median by more than this are flagged.",
        unit="scaled median absolute deviations",
        source="Wang et al. 2019, section 4.2",
        gt=0,
        le=100,
    )
    then: Literal["unlearn", "nothing"] = field(
        "unlearn",
        "unlearn: fine-tune on the clean set, part of it stamped with the flagged triggers and true labels. "
        "nothing: keep the victim as it is.",
    )
    unlearning_epochs: int = field(
        20, "Passes over the clean set to unlearn.", unit="epochs", source=BENCHMARK, ge=1, le=1000
    )
    unlearning_learning_rate: float = field(
        0.01, "Peak learning rate of unlearning; to zero along a cosine.", source=BENCHMARK, gt=0, le=10
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
        return [inversion, ("repair", {n: getattr(self, n) for n in unlearning}, self.unlearning_epochs)]
