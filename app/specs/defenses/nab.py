"""Non-adversarial backdoor, a training defense to compare with ABL."""

from typing import Any, Literal, Self

from pydantic import model_validator

from app.specs.base import Preset, field, preset_field
from app.specs.defenses.abl import OWN_TUNING
from app.specs.defenses.base import BENCHMARK, HeldOutDefense, check_window

PAPER = "Liu et al. 2023, section 4"
CODE = "damianliumin/non-adversarial_backdoor, the authors' code"


_PRESETS = {
    "recommended": Preset(
        "isolation as in `abl`'s steady form, and a stamp that is visible on every image.",
        "chosen here: the ranking is averaged over epochs",
        {},
    ),
    "authors": Preset(
        "the settings of the authors' code for CIFAR-10. The length of the final training remains the experiment's; "
        "there it is 100 epochs.",
        CODE,
        {
            "isolation_loss": "flooding",
            "isolation_epochs": 20,
            "isolation_learning_rate": 0.1,
            "isolation_augmentation": False,
            "ranking_window": 1,
            "labelling_learning_rate": 0.01,
            "labelling_schedule": "steps",
            "labelling_with_stamp": True,
            "stamp_value": None,
        },
    ),
}


class Nab(HeldOutDefense):
    """NAB (Liu et al., 2023): suspicious samples are relabeled and get a stamp, which counteracts the trigger.

    The model needs the stamp on every input; the defended network adds it.
    """

    name: Literal["nab"] = "nab"
    presets = _PRESETS
    preset: Literal["recommended", "authors"] = preset_field(_PRESETS, "recommended")
    isolation_loss: Literal["local_gradient_ascent", "flooding"] = field(
        "local_gradient_ascent", "Loss that is kept near gamma, as in `abl`.", source=f"{PAPER}; {CODE}"
    )
    isolation_augmentation: bool = field(
        True, "Augment images during isolation, as in training.", source=OWN_TUNING
    )
    isolation_ratio: float = field(
        0.05,
        "Share of the training set that is treated as suspicious.",
        unit="fraction",
        source=PAPER,
        gt=0,
        le=0.5,
    )
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
    labelling_epochs: int = field(
        100,
        "Training of the model that relabels, on the clean set only.",
        unit="epochs",
        source=BENCHMARK,
        ge=1,
        le=1000,
    )
    labelling_learning_rate: float = field(
        0.1, "Initial learning rate of that model.", source=BENCHMARK, gt=0, le=10
    )
    labelling_schedule: Literal["cosine", "steps"] = field(
        "cosine",
        "Schedule of that rate. steps: a tenth of it after a fifth of the training, a hundredth after three fifths.",
        source=f"{BENCHMARK}; {CODE}",
    )
    labelling_with_stamp: bool = field(
        False,
        "Whether that model sees the suspects with the stamp. It is trained without it.",
        source=f"chosen here: the stamp hides a part of the image; {CODE}",
    )
    stamp_size: int = field(
        2, "Side of the square stamp in the top left corner.", unit="pixels", source=PAPER, ge=1, le=224
    )
    stamp_value: int | None = field(
        255,
        "Gray level of the stamp. Null: the mean color of the training images, which is the 0 that the authors write "
        "into normalized images.",
        unit="gray levels (0-255)",
        source=f"chosen here: the mean color is hard to see on many images; {CODE}",
        ge=0,
        le=255,
    )

    @model_validator(mode="after")
    def _window_fits(self) -> Self:
        check_window(self.ranking_window, self.isolation_epochs)
        return self

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        isolation = (
            "isolation_ratio",
            "isolation_loss",
            "isolation_augmentation",
            "isolation_epochs",
            "isolation_learning_rate",
            "ranking_window",
            "gamma",
        )
        labelling = ("clean_ratio", "held_out_ratio", "labelling_")
        read = self.fields_with(*labelling, *(["stamp_"] if self.labelling_with_stamp else []))
        return [
            ("isolation", self.fields_with(*isolation), self.isolation_epochs),
            ("labelling", read, self.labelling_epochs // 10),
            ("training", self.fields_with("stamp_"), 30),
        ]
