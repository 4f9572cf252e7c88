"""Anti-Backdoor Learning."""

from typing import Any, Literal

from pydantic import model_validator

from app.specs.base import field
from app.specs.defenses.base import Defense, check_window

PAPER = "Li et al. 2021, section 4"
CODE = "the ABL authors' published code"
HERE = "docs/results: chosen on digits and CIFAR-10 with other seeds and rates than those reported"

_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "isolation_loss": "local_gradient_ascent",
        "isolation_reduction": "per_sample",
        "isolation_epochs": 20,
        "isolation_learning_rate": 0.1,
        "isolation_augmentation": True,
        "ranking_window": 1,
        "isolation_ratio": 0.01,
        "finetune_epochs": 60,
        "finetune_learning_rate": 0.1,
        "unlearning_objective": "joint",
        "unlearning_epochs": 20,
        "unlearning_learning_rate": 1e-4,
        "holdout_ratio": 0.0,
    },
    "authors": {
        "isolation_loss": "flooding",
        "isolation_reduction": "batch_mean",
        "isolation_epochs": 10,
        "isolation_learning_rate": 0.1,
        "isolation_augmentation": False,
        "ranking_window": 1,
        "isolation_ratio": 0.01,
        "finetune_epochs": 60,
        "finetune_learning_rate": 0.1,
        "unlearning_objective": "ascent",
        "unlearning_epochs": 5,
        "unlearning_learning_rate": 5e-4,
        "holdout_ratio": 0.0,
    },
}


class Abl(Defense):
    """Anti-Backdoor Learning (Li et al., 2021): isolate what is learned too fast, then unlearn it.

    ``preset`` fills every field that is not given; the canonical spec shows the values that result.
    """

    name: Literal["abl"] = "abl"
    preset: Literal["steady", "paper", "authors"] = field(
        "steady",
        "steady: the paper's scheme made dependable (smoothed ranking, bounded unlearning). "
        "paper: the schedule of the paper. authors: the schedule of the authors' code.",
        source=f"{PAPER}; {CODE}; {HERE}",
    )
    isolation_loss: Literal["local_gradient_ascent", "flooding"] = field(
        "local_gradient_ascent",
        "Keeps losses near gamma: sign(l - gamma) l, or |l - gamma| + gamma.",
        source=PAPER,
    )
    isolation_reduction: Literal["batch_mean", "per_sample"] = field(
        "batch_mean",
        "Whether the isolation loss acts on the batch's mean loss or on each sample's.",
        source=CODE,
    )
    gamma: float = field(
        0.5, "Level below which the loss is pushed up again.", unit="nats", source=PAPER, ge=0, le=10
    )
    isolation_epochs: int = field(
        24, "Turning epoch: length of the isolation stage.", unit="epochs", source=PAPER, ge=1, le=500
    )
    isolation_learning_rate: float = field(
        0.01, "Learning rate of the isolation stage, constant.", source=HERE, gt=0, le=10
    )
    isolation_augmentation: bool = field(True, "Augment images during isolation as in training.", source=HERE)
    ranking_window: int = field(
        12,
        "Rank samples by the mean of their loss ranks over so many last isolation epochs; 1 is the last alone.",
        unit="epochs",
        source=HERE,
        ge=1,
        le=500,
    )
    isolation_ratio: float = field(
        0.01, "Share of the training set that is isolated.", unit="fraction", source=PAPER, gt=0, le=0.5
    )
    finetune_epochs: int = field(
        60, "Training on the samples that were not isolated.", unit="epochs", source=CODE, ge=0, le=1000
    )
    finetune_learning_rate: float = field(
        0.1, "Learning rate of that training; a tenth of it in the last third.", source=CODE, gt=0, le=10
    )
    unlearning_objective: Literal["unlikelihood", "joint", "ascent"] = field(
        "unlikelihood",
        "joint: loss on the rest minus loss on the isolated, which has no lower bound. "
        "ascent: minus the loss on the isolated alone. "
        "unlikelihood: loss on the rest plus -log(1 - p) of the isolated samples' labels, which is bounded.",
        source=f"{PAPER}; {CODE}; Welleck et al. 2020",
    )
    unlearning_epochs: int = field(
        10, "At most so many passes of unlearning.", unit="epochs", source=HERE, ge=0, le=500
    )
    unlearning_learning_rate: float = field(
        5e-4, "Learning rate of unlearning, constant.", source=CODE, gt=0, le=1
    )
    holdout_ratio: float = field(
        0.1,
        "Share of the training set kept out of fine-tuning and unlearning, to watch accuracy with. "
        "Drawn from the less suspicious half of the classes not accused. 0: unlearning is not watched.",
        unit="fraction",
        source=HERE,
        ge=0,
        le=0.3,
    )
    max_accuracy_drop: float = field(
        0.05,
        "Keep the last unlearning epoch at which accuracy on the hold-out had fallen by no more than this, "
        "and stop after five epochs in a row below it.",
        unit="fraction",
        source=HERE,
        gt=0,
        le=1,
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if isinstance(given, dict):
            return {**_PRESETS.get(given.get("preset", ""), {}), **given}
        return given

    @model_validator(mode="after")
    def _window_fits(self) -> "Abl":
        check_window(self.ranking_window, self.isolation_epochs)
        return self

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        fields = self.model_dump(mode="json")

        def part(*prefixes: str) -> dict[str, Any]:
            return {name: value for name, value in fields.items() if name.startswith(prefixes)}

        return [
            ("isolation", part("isolation_", "gamma", "ranking_"), self.isolation_epochs),
            ("finetune", part("finetune_", "holdout_"), self.finetune_epochs),
            ("unlearning", part("unlearning_", "max_accuracy_drop"), self.unlearning_epochs),
        ]
