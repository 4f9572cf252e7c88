"""Attacks on the training itself: no image is poisoned, the attacker's code computes the loss."""

from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import model_validator

from app.specs.attacks.base import JOINT, DirtyLabelAttack, PreparationStage
from app.specs.base import Preset, field, preset_field
from app.specs.facts import DatasetFacts

BLIND_CODE = "ebagdasa/backdoors101, configs/cifar10_params.yaml and attack.py"
BLIND_PATTERN = "ebagdasa/backdoors101, synthesizers/pattern_synthesizer.py"
BLIND_BENCHMARK = "BackdoorBench, config/attack/blind/default.yaml"
PATTERN = ((255, 0, 255), (None, 255, None), (None, None, 0), (None, 255, None), (255, 0, 255))
"""The authors' pattern, rows of gray levels; None: the image shows."""

_BLIND_PRESETS = {
    "recommended": Preset(
        "the authors' attack, for as many epochs as a victim has by default.", "chosen here", {}
    ),
    "authors": Preset(
        "the authors' configuration for CIFAR-10, with their 200 epochs.", BLIND_CODE, {"joint_epochs": 200}
    ),
    "benchmark": Preset(
        "BackdoorBench's settings: fixed weights of the two losses, and 100 epochs.",
        BLIND_BENCHMARK,
        {"balance": "fixed", "joint_epochs": 100},
    ),
}


class Blind(DirtyLabelAttack):
    """Blind backdoor (Bagdasaryan and Shmatikov, 2021): the victim's loss is manipulated, and no image is poisoned.

    The attacker's code in the training computes a second loss, on each batch with the trigger and the target's label,
    and adds both with weights that make neither dominate. The undefended model is the one trained so.
    """

    name: Literal["blind"] = "blind"
    presets = _BLIND_PRESETS
    preset: Literal["recommended", "authors", "benchmark"] = preset_field(_BLIND_PRESETS, "recommended")
    poisoning_rate: float = field(
        1.0,
        "Share of each batch that has the trigger in the second loss. The training set stays clean.",
        unit="fraction",
        source=BLIND_CODE,
        gt=0,
        le=1,
    )
    row: int | None = field(
        None,
        "Row of the pattern's top, from 0. Null: 3 of 32 rows, in proportion.",
        unit="pixels",
        source=BLIND_PATTERN,
        ge=0,
        le=1023,
    )
    column: int | None = field(
        None,
        "Column of the pattern's left, from 0. Null: 23 of 32 columns, in proportion.",
        unit="pixels",
        source=BLIND_PATTERN,
        ge=0,
        le=1023,
    )
    balance: Literal["mgda", "fixed"] = field(
        "mgda",
        "Weights of the two losses. mgda: those for which the weighted sum of the normalized gradients is shortest "
        "(multiple gradient descent), for each batch. fixed: 1 and backdoor_weight.",
        source=BLIND_CODE,
    )
    normalization: Literal["none", "l2", "loss", "loss+"] = field(
        "loss+",
        "What a loss's gradient is divided by for mgda. l2: its length. loss: the loss. loss+: both. The last two are "
        "at most 10. Used only if balance is mgda.",
        source=BLIND_CODE,
    )
    backdoor_weight: float = field(
        0.9,
        "Weight of the second loss. Used only if balance is fixed.",
        source=BLIND_BENCHMARK,
        gt=0,
        le=100,
    )
    loss_threshold: float | None = field(
        1.0,
        "The second loss is used while the mean of the first one over the last batches is below this. Null: always.",
        source=BLIND_CODE,
        gt=0,
        le=100,
    )
    history_epochs: float = field(
        1.28,
        "Length of the window of that mean. The second loss is not used before the window is full. The authors have "
        "1,000 batches of 64 images of CIFAR-10. Used only with loss_threshold.",
        unit="epochs",
        source=BLIND_CODE,
        gt=0,
        le=100,
    )
    joint_epochs: int = field(
        30,
        "Training by the manipulated loss, with the experiment's recipe; replaces training.epochs for the undefended "
        "arm.",
        unit="epochs",
        source=f"chosen here, as training.epochs; {BLIND_CODE}: 200",
        ge=1,
        le=1000,
    )

    @property
    def poisons_data(self) -> bool:
        return False

    @property
    def hands_over(self) -> bool:
        return True

    @model_validator(mode="after")
    def _check_history(self) -> Self:
        if self.loss_threshold is not None and self.history_epochs >= self.joint_epochs:
            raise ValueError("history_epochs must be less than joint_epochs, or the attack never starts")
        return self

    def place(self, facts: DatasetFacts) -> tuple[int, int]:
        """Row and column of the pattern's top left pixel."""
        height, width = len(PATTERN), len(PATTERN[0])
        row = min(round(3 / 32 * facts.height), facts.height - height) if self.row is None else self.row
        left = min(round(23 / 32 * facts.width), facts.width - width) if self.column is None else self.column
        return row, left

    def unfit(self, facts: DatasetFacts) -> Iterator[tuple[str, Any, str]]:
        row, column = self.place(facts)
        for name, start, size, side in (
            ("row", row, len(PATTERN), facts.height),
            ("column", column, len(PATTERN[0]), facts.width),
        ):
            if not 0 <= start <= side - size:
                allowed = f"0 to {side - size}" if side >= size else "none"
                yield name, getattr(self, name), f"{allowed}, since the pattern has {size} of {side} pixels"

    def stages(self) -> list[PreparationStage]:
        fields = self.model_dump(mode="json", exclude={"name", "preset", "export"})
        return [PreparationStage(JOINT, fields, 3 * self.joint_epochs)]
