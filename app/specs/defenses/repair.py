"""Repair defenses, which start from the trained victim and a clean set."""

from typing import Any, ClassVar, Literal

from app.specs.base import field
from app.specs.defenses.base import BENCHMARK, CleanSetDefense, Kind

BOUND = "Liu et al. 2018, section 4.1: 4 % of accuracy"


class _Repair(CleanSetDefense):
    """Base class of repair defenses."""

    kind: ClassVar[Kind] = "repair"


def _accuracy_drop(default: float = 0.04, source: str = BOUND) -> Any:
    return field(
        default,
        "Largest drop of accuracy on the held-out part of the clean set; pruning stops before it is exceeded.",
        unit="fraction",
        source=source,
        gt=0,
        le=1,
    )


class FineTuning(_Repair):
    """Fine-tuning (baseline of Liu et al., 2018): the victim is trained further on clean images only."""

    name: Literal["fine_tuning"] = "fine_tuning"
    epochs: int = field(100, "Passes over the clean set.", unit="epochs", source=BENCHMARK, ge=1, le=1000)
    learning_rate: float = field(
        0.01, "Peak learning rate, with a cosine schedule.", source=BENCHMARK, gt=0, le=10
    )

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        return [("repair", self.fields(), self.epochs)]


class FinePruning(_Repair):
    """Fine-Pruning (Liu et al., 2018): prune the channels that clean images activate least, then fine-tune."""

    name: Literal["fine_pruning"] = "fine_pruning"
    max_accuracy_drop: float = _accuracy_drop()
    epochs: int = field(
        100, "Fine-tuning passes over the clean set.", unit="epochs", source=BENCHMARK, ge=0, le=1000
    )
    learning_rate: float = field(
        0.01, "Peak learning rate, with a cosine schedule.", source=BENCHMARK, gt=0, le=10
    )

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        tuning = ("epochs", "learning_rate")
        return [
            ("pruning", self.fields(*tuning), 1),
            ("repair", self.fields_with(*tuning), self.epochs),
        ]


class Nad(_Repair):
    """Neural Attention Distillation (Li et al., 2021): the victim learns the attention maps of a fine-tuned teacher."""

    name: Literal["nad"] = "nad"
    teacher_epochs: int = field(
        10,
        "Fine-tuning of the teacher.",
        unit="epochs",
        source="Li et al. 2021b, section 4.1",
        ge=1,
        le=1000,
    )
    epochs: int = field(
        20,
        "Distillation of the victim.",
        unit="epochs",
        source="the NAD authors' published code",
        ge=1,
        le=1000,
    )
    learning_rate: float = field(
        0.01,
        "Peak learning rate of both, with a cosine schedule. The paper starts with 0.1 for two epochs, which destroys "
        "small networks.",
        source=BENCHMARK,
        gt=0,
        le=10,
    )
    betas: tuple[float, float, float] = field(
        (0.5, 4.0, 16.0),
        "Weights of the squared distances of the last three attention maps, first to last. The defaults equal the "
        "authors' 500, 1000, 1000 for mean squares over maps of 32x32, 16x16 and 8x8.",
        source="the NAD authors' published code",
    )
    power: float = field(
        2.0,
        "Exponent p of the attention map, which is the mean of |a|^p over channels.",
        source="Li et al. 2021b, section 3.2",
        ge=1,
        le=8,
    )

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        teacher = ("clean_ratio", "held_out_ratio", "teacher_epochs", "learning_rate")
        return [
            ("teacher", self.fields_with(*teacher), self.teacher_epochs),
            ("repair", self.fields(*teacher), self.epochs),
        ]


class Mcr(_Repair):
    """Mode Connectivity Repair (Zhao et al., 2020): a point on a low-loss curve between victim and fine-tuned copy."""

    name: Literal["mcr"] = "mcr"
    tuning_epochs: int = field(
        100,
        "Fine-tuning of the copy at the far end of the curve.",
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
        "Training of the curve's bend.",
        unit="epochs",
        source="Zhao et al. 2020, appendix",
        ge=1,
        le=1000,
    )
    learning_rate: float = field(0.01, "Peak learning rate of the bend.", source=BENCHMARK, gt=0, le=10)
    point: float = field(
        0.4,
        "Position of the repaired model on the curve: 0 is the victim, 1 the fine-tuned copy.",
        source="Zhao et al. 2020, section 4: 0.1 to 0.4",
        gt=0,
        lt=1,
    )

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        tuning = ("clean_ratio", "held_out_ratio", "tuning_epochs", "tuning_learning_rate")
        return [
            ("tuning", self.fields_with(*tuning), self.tuning_epochs),
            ("curve", self.fields_with("epochs", "learning_rate"), self.epochs),
            ("repair", self.fields_with("point"), 1),
        ]


class FtSam(_Repair):
    """FT-SAM (Zhu et al., 2023): fine-tuning with sharpness-aware minimization, which shrinks backdoor neurons."""

    name: Literal["ft_sam"] = "ft_sam"
    epochs: int = field(100, "Passes over the clean set.", unit="epochs", source=BENCHMARK, ge=1, le=1000)
    learning_rate: float = field(
        0.01, "Peak learning rate, with a cosine schedule.", source=BENCHMARK, gt=0, le=10
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
    """Adversarial Neuron Pruning (Wu and Wang, 2021): prune the neurons that are most sensitive to perturbation."""

    name: Literal["anp"] = "anp"
    steps: int = field(
        2000,
        "Optimization steps of the masks, rounded to whole passes over the clean set.",
        unit="batches",
        source="Wu and Wang 2021, section 5.1",
        ge=1,
        le=100_000,
    )
    learning_rate: float = field(
        0.2, "Constant learning rate of the masks.", source="Wu and Wang 2021, section 5.1", gt=0, le=10
    )
    epsilon: float = field(
        0.4,
        "Largest relative perturbation of a neuron's weights and bias.",
        unit="fraction",
        source="Wu and Wang 2021, section 5.1",
        gt=0,
        le=2,
    )
    alpha: float = field(
        0.2,
        "Weight of the loss without perturbation; the loss with it has the weight 1 - alpha.",
        unit="fraction",
        source="Wu and Wang 2021, section 5.1",
        ge=0,
        le=1,
    )
    threshold: float = field(
        0.9,
        "Neurons with a mask below this are pruned, smallest first, as far as max_accuracy_drop allows. The paper uses "
        "0.2.",
        source=BENCHMARK,
        gt=0,
        lt=1,
    )
    max_accuracy_drop: float = _accuracy_drop(0.1, BENCHMARK)

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        pruning = ("threshold", "max_accuracy_drop")
        return [
            ("masks", self.fields(*pruning), 30),
            ("repair", self.fields_with(*pruning), 1),
        ]


class IBau(_Repair):
    """I-BAU (Zeng et al., 2022): unlearn the worst universal perturbation with an implicit hypergradient."""

    name: Literal["i_bau"] = "i_bau"
    rounds: int = field(5, "Rounds of attack and unlearning.", unit="rounds", source=BENCHMARK, ge=1, le=200)
    learning_rate: float = field(
        1e-3, "Learning rate of Adam for the model.", source="the I-BAU authors' published code", gt=0, le=1
    )
    radius: float = field(
        10.0,
        "Bound on the l2 norm of the universal perturbation, on images in [0, 1]. It has no effect on 8x8 gray images.",
        source="the I-BAU authors' published code",
        gt=0,
        le=1000,
    )
    perturbation_learning_rate: float = field(
        10.0,
        "Step length of the inner gradient ascent.",
        source="the I-BAU authors' published code",
        gt=0,
        le=1000,
    )
    fixed_point_steps: int = field(
        5,
        "Fixed-point iterations for the implicit gradient (K).",
        unit="steps",
        source="the I-BAU authors' published code",
        ge=1,
        le=100,
    )
    perturbed_share: float = field(
        0.01,
        "Share of each batch that carries the perturbation in unlearning; at least one image.",
        unit="fraction",
        source="the I-BAU authors' published code",
        gt=0,
        le=1,
    )

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        return [("repair", self.fields(), self.rounds)]
