"""Repair defenses: they start from the trained victim and a small clean set."""

from typing import Any, ClassVar, Literal

from app.specs.base import field
from app.specs.defenses.base import BENCHMARK, CleanSetDefense, Kind

BOUND = "Liu et al. 2018, section 4.1: 4 % of accuracy"


class _Repair(CleanSetDefense):
    """Fields that every repair shares."""

    kind: ClassVar[Kind] = "repair"


def _bound(default: float = 0.04, source: str = BOUND) -> Any:
    return field(
        default,
        "Prune no further once accuracy on the held-out part of the clean set has fallen by more than this.",
        unit="fraction",
        source=source,
        gt=0,
        le=1,
    )


class FineTuning(_Repair):
    """Fine-tuning: train the victim on, on clean images alone (the baseline of Liu et al., 2018)."""

    name: Literal["fine_tuning"] = "fine_tuning"
    epochs: int = field(100, "Passes over the clean set.", unit="epochs", source=BENCHMARK, ge=1, le=1000)
    learning_rate: float = field(
        0.01, "Peak learning rate; to zero along a cosine.", source=BENCHMARK, gt=0, le=10
    )

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        return [("repair", self.fields(), self.epochs)]


class FinePruning(_Repair):
    """Fine-Pruning (Liu et al., 2018): remove channels that clean images leave dormant, then fine-tune."""

    name: Literal["fine_pruning"] = "fine_pruning"
    max_accuracy_drop: float = _bound()
    epochs: int = field(
        100, "Passes of fine-tuning over the clean set.", unit="epochs", source=BENCHMARK, ge=0, le=1000
    )
    learning_rate: float = field(
        0.01, "Peak learning rate; to zero along a cosine.", source=BENCHMARK, gt=0, le=10
    )

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        tuning = ("epochs", "learning_rate")
        return [
            ("pruning", self.fields(*tuning), 1),
            ("repair", {name: getattr(self, name) for name in tuning}, self.epochs),
        ]


class Nad(_Repair):
    """Neural Attention Distillation (Li et al., 2021): a fine-tuned teacher's attention maps, taught to the victim."""

    name: Literal["nad"] = "nad"
    teacher_epochs: int = field(
        10,
        "Fine-tuning that makes the teacher.",
        unit="epochs",
        source="Li et al. 2021b, section 4.1",
        ge=1,
        le=1000,
    )
    epochs: int = field(
        20, "Distillation.", unit="epochs", source="the NAD authors' published code", ge=1, le=1000
    )
    learning_rate: float = field(
        0.01,
        "Peak learning rate of both; to zero along a cosine. The paper begins with 0.1 for two epochs, "
        "which destroys a small network.",
        source=BENCHMARK,
        gt=0,
        le=10,
    )
    betas: tuple[float, float, float] = field(
        (0.5, 4.0, 16.0),
        "Weights of the squared distances between the last three attention maps, first to last. These equal the "
        "authors' 500, 1000, 1000 on mean squares over maps of 32x32, 16x16 and 8x8.",
        source="the NAD authors' published code",
    )
    power: float = field(
        2.0,
        "Exponent p of the attention map, the channel mean of |a|^p.",
        source="Li et al. 2021b, section 3.2",
        ge=1,
        le=8,
    )

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        teacher = ("clean_ratio", "held_out_ratio", "teacher_epochs", "learning_rate")
        return [
            ("teacher", {name: getattr(self, name) for name in teacher}, self.teacher_epochs),
            ("repair", self.fields(*teacher), self.epochs),
        ]


class Mcr(_Repair):
    """Mode Connectivity Repair (Zhao et al., 2020): a point on a low-loss curve from the victim to a tuned copy."""

    name: Literal["mcr"] = "mcr"
    tuning_epochs: int = field(
        100,
        "Fine-tuning that makes the far end of the curve.",
        unit="epochs",
        source=BENCHMARK,
        ge=1,
        le=1000,
    )
    tuning_learning_rate: float = field(
        0.01, "Peak learning rate of that fine-tuning.", source=BENCHMARK, gt=0, le=10
    )
    epochs: int = field(
        100,
        "Training of the curve's middle bend.",
        unit="epochs",
        source="Zhao et al. 2020, appendix",
        ge=1,
        le=1000,
    )
    learning_rate: float = field(0.01, "Peak learning rate of the bend.", source=BENCHMARK, gt=0, le=10)
    point: float = field(
        0.4,
        "Where on the curve the repaired model is taken: 0 is the victim, 1 the tuned copy.",
        source="Zhao et al. 2020, section 4: 0.1 to 0.4",
        gt=0,
        lt=1,
    )

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        tuning = ("clean_ratio", "held_out_ratio", "tuning_epochs", "tuning_learning_rate")
        return [
            ("tuning", {name: getattr(self, name) for name in tuning}, self.tuning_epochs),
            ("curve", {"epochs": self.epochs, "learning_rate": self.learning_rate}, self.epochs),
            ("repair", {"point": self.point}, 1),
        ]


class FtSam(_Repair):
    """FT-SAM (Zhu et al., 2023): fine-tuning that seeks flat minima, so that backdoor neurons shrink."""

    name: Literal["ft_sam"] = "ft_sam"
    epochs: int = field(100, "Passes over the clean set.", unit="epochs", source=BENCHMARK, ge=1, le=1000)
    learning_rate: float = field(
        0.01, "Peak learning rate; to zero along a cosine.", source=BENCHMARK, gt=0, le=10
    )
    rho: float = field(
        2.0,
        "Radius of the adaptive perturbation of the weights.",
        source="Zhu et al. 2023, section 5.1",
        gt=0,
        le=100,
    )

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        return [("repair", self.fields(), self.epochs)]


class Anp(_Repair):
    """Adversarial Neuron Pruning (Wu and Wang, 2021): prune the neurons whose perturbation hurts most."""

    name: Literal["anp"] = "anp"
    steps: int = field(
        2000,
        "Steps of optimizing the masks, rounded to whole passes over the clean set.",
        unit="batches",
        source="Wu and Wang 2021, section 5.1",
        ge=1,
        le=100_000,
    )
    learning_rate: float = field(
        0.2, "Learning rate of the masks, constant.", source="Wu and Wang 2021, section 5.1", gt=0, le=10
    )
    epsilon: float = field(
        0.4,
        "Largest relative perturbation of a neuron's weight and bias.",
        unit="fraction",
        source="Wu and Wang 2021, section 5.1",
        gt=0,
        le=2,
    )
    alpha: float = field(
        0.2,
        "Weight of the loss without perturbation; 1 - alpha weighs the loss under it.",
        unit="fraction",
        source="Wu and Wang 2021, section 5.1",
        ge=0,
        le=1,
    )
    threshold: float = field(
        0.9,
        "Neurons with a smaller mask may be pruned, the smallest first, as far as max_accuracy_drop allows. "
        "The paper prunes below 0.2.",
        source=BENCHMARK,
        gt=0,
        lt=1,
    )
    max_accuracy_drop: float = _bound(0.1, BENCHMARK)

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        pruning = ("threshold", "max_accuracy_drop")
        return [
            ("masks", self.fields(*pruning), 30),
            ("repair", {name: getattr(self, name) for name in pruning}, 1),
        ]


class IBau(_Repair):
    """I-BAU (Zeng et al., 2022): unlearn the worst universal perturbation, by an implicit hypergradient."""

    name: Literal["i_bau"] = "i_bau"
    rounds: int = field(5, "Rounds of attack and unlearning.", unit="rounds", source=BENCHMARK, ge=1, le=200)
    learning_rate: float = field(
        1e-3, "Learning rate of Adam on the model.", source="the I-BAU authors' published code", gt=0, le=1
    )
    radius: float = field(
        10.0,
        "Largest l2 norm of the universal perturbation, on images in [0, 1]; on 8x8 gray images it does not bind.",
        source="the I-BAU authors' published code",
        gt=0,
        le=1000,
    )
    perturbation_learning_rate: float = field(
        10.0, "Step of the inner ascent.", source="the I-BAU authors' published code", gt=0, le=1000
    )
    fixed_point_steps: int = field(
        5,
        "Steps of the fixed-point solver of the implicit gradient (K).",
        unit="steps",
        source="the I-BAU authors' published code",
        ge=1,
        le=100,
    )
    perturbed_share: float = field(
        0.01,
        "Share of a batch that carries the perturbation while the model unlearns; at least one image.",
        unit="fraction",
        source="the I-BAU authors' published code",
        gt=0,
        le=1,
    )

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        return [("repair", self.fields(), self.rounds)]
