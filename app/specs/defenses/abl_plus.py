"""ABL with further signals: which samples are learned fast, and which ones the rest of the data does not explain."""

from typing import Any, Literal, Self

from pydantic import model_validator

from app.specs.base import field
from app.specs.defenses.abl import OWN_TUNING, PAPER, Abl
from app.specs.defenses.base import Defense, check_window

ROUNDS = 4
"""Sorting rounds. Each is a stage, so that each can be resumed."""
SPLITS = 2
"""Splitting rounds. Each is a stage."""
REMOVALS = 2
"""Models of the removal test. Each is a stage."""
MARGIN = 4.0
"""Distance below zero to which training reduces the log-odds of the accused label on poison, in nats: to 1.8 %."""


class AblPlus(Defense):
    """A method of this project: finds poison without a clean set and without the rate, target class or trigger.

    Isolation (as in `abl`) and a superposition test select suspicious classes. A sorting model learns such a class from
    its least suspicious images and classifies its other images; those that it assigns to other classes are strange. A
    class is accused by its strange images, by a bimodal distribution of suspicion, or by agreement of both rankings,
    and is then divided into poison and clean images. If models that were trained without the poison recognize it as the
    class all the same, the accusation is dropped, with a warning. The final model learns the clean images and is
    trained against the accused label on half of the poison; if it learns badly, it is trained again from other initial
    weights. If it still assigns the accused label to the other half, a model is trained on the clean images only and
    poison is unlearned. If no accusation stands, the model is trained on all images.
    """

    name: Literal["abl_plus"] = "abl_plus"
    isolation_epochs: int = field(
        24,
        "Length of the isolation stage that ranks the samples, as in `abl`.",
        unit="epochs",
        source=OWN_TUNING,
        ge=1,
        le=500,
    )
    isolation_learning_rate: float = field(
        0.01, "Constant learning rate of the isolation stage, as in `abl`.", source=OWN_TUNING, gt=0, le=10
    )
    ranking_window: int = field(
        12,
        "Number of last isolation epochs over which ranks are averaged, as in `abl`.",
        unit="epochs",
        source=OWN_TUNING,
        ge=1,
        le=500,
    )
    gamma: float = field(
        0.5, "Loss level that isolation maintains, as in `abl`.", unit="nats", source=PAPER, ge=0, le=10
    )
    scout_epochs: int = field(
        20,
        "Training of the model for the superposition test, on all images.",
        unit="epochs",
        source=OWN_TUNING,
        ge=1,
        le=500,
    )
    sorting_epochs: int = field(
        10,
        f"Training of each of the {ROUNDS} sorting models, and of each of the {SPLITS} splitting models, which divide "
        "an accused class if sorting does not.",
        unit="epochs",
        source=OWN_TUNING,
        ge=1,
        le=500,
    )
    removal_epochs: int = field(
        20,
        f"Training of each of the {REMOVALS} models of the removal test, which see neither the accused images nor all "
        "other images of their class.",
        unit="epochs",
        source=OWN_TUNING,
        ge=1,
        le=500,
    )
    proof: float = field(
        1.1,
        "Evidence needed to accuse a class: the share of its images that are strange, plus the probability that a "
        "strange image is more suspicious than another one (area under the ROC curve). A class is also accused if "
        "nearly half of it is strange, if both rankings are bimodal within it, or if both agree on it. Strange images "
        "must resemble several classes.",
        source=OWN_TUNING,
        ge=0.5,
        le=2,
    )
    unlearning_epochs: int = field(
        10,
        "Maximum length of unlearning, if training against the accused label fails.",
        unit="epochs",
        source=OWN_TUNING,
        ge=0,
        le=500,
    )
    unlearning_learning_rate: float = field(
        5e-4, "Constant learning rate of unlearning, as in `abl`.", source=OWN_TUNING, gt=0, le=1
    )

    @model_validator(mode="after")
    def _window_fits(self) -> Self:
        check_window(self.ranking_window, self.isolation_epochs)
        return self

    @property
    def abl(self) -> Abl:
        """The parts shared with `abl` in its steady form."""
        return Abl(
            isolation_epochs=self.isolation_epochs,
            isolation_learning_rate=self.isolation_learning_rate,
            ranking_window=self.ranking_window,
            gamma=self.gamma,
            unlearning_epochs=self.unlearning_epochs,
            unlearning_learning_rate=self.unlearning_learning_rate,
        )

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        isolation, _, unlearning = self.abl.stages()
        sorting = {"epochs": self.sorting_epochs}
        return [
            isolation,
            ("scout", {"epochs": self.scout_epochs}, self.scout_epochs),
            *((f"sorting_{i}", sorting, self.sorting_epochs) for i in range(1, ROUNDS + 1)),
            *((f"splitting_{i}", sorting, self.sorting_epochs) for i in range(1, SPLITS + 1)),
            ("accusation", {"proof": self.proof}, 1),
            *(
                (f"removal_{i}", {"epochs": self.removal_epochs}, self.removal_epochs)
                for i in range(1, REMOVALS + 1)
            ),
            ("verdict", {}, 1),
            ("training", {"margin": MARGIN}, 30),
            ("second_training", {}, 30),
            ("retraining", {}, 30),
            unlearning,
        ]
