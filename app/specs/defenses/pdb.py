"""Proactive defensive backdoor."""

from collections.abc import Iterator
from typing import Any, Literal

from app.specs.base import Preset, field, preset_field
from app.specs.defenses.base import CleanSetDefense
from app.specs.facts import DatasetFacts

CODE = "shawkui/Proactive_Defensive_Backdoor, the authors' code"

_PRESETS = {
    "authors": Preset("the settings of the authors' code for CIFAR-10.", CODE, {}),
}


class Pdb(CleanSetDefense):
    """PDB (Wei et al., 2024): the defender's own backdoor, which is stronger than the attacker's and can be reverted.

    The model needs the defender's trigger, the stamp, on every input; the defended network adds it.
    """

    name: Literal["pdb"] = "pdb"
    presets = _PRESETS
    preset: Literal["authors"] = preset_field(_PRESETS, "authors")
    clean_ratio: float = field(
        0.1,
        "Size of the clean set, as a share of the training set.",
        unit="fraction",
        source=CODE,
        gt=0,
        le=0.5,
    )
    repetitions: int = field(
        5, "How often the stamped clean images occur in an epoch.", source=CODE, ge=1, le=100
    )
    stamp_size: int | None = field(
        None,
        "Side of the square stamp in the top left corner. Null: the authors' share of the side, 7 of 32 pixels.",
        unit="pixels",
        source=CODE,
        ge=1,
        le=224,
    )
    stamp_value: float = field(
        2.0,
        "Brightness of the stamp; white is 1, so by default no image of the attacker can contain it.",
        source=CODE,
        ge=0,
        le=100,
    )
    shift: int = field(
        1,
        "Distance from the true class to the class that the defender's backdoor assigns, counted cyclically.",
        unit="classes",
        source=CODE,
        ge=1,
        le=9999,
    )
    epochs: int = field(100, "Length of the training.", unit="epochs", source=CODE, ge=1, le=1000)
    batch_size: int = field(256, "Images per step.", unit="images", source=CODE, ge=2, le=65536)
    learning_rate: float = field(0.01, "Peak; cosine decay to zero.", source=CODE, gt=0, le=10)
    weight_decay: float = field(5e-4, "L2 penalty.", source=CODE, ge=0, le=1)

    def stamp_side(self, facts: DatasetFacts) -> int:
        """Side of the stamp in pixels."""
        return self.stamp_size or max(1, round(min(facts.height, facts.width) * 7 / 32))

    def unfit(self, facts: DatasetFacts) -> Iterator[tuple[str, Any, str]]:
        if self.shift % facts.classes == 0:
            yield "shift", self.shift, f"no multiple of {facts.classes}, the number of classes"
        side = min(facts.height, facts.width)
        if self.stamp_side(facts) >= side:
            yield "stamp_size", self.stamp_size, f"less than {side}, the image's shorter side in pixels"

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        return [("training", self.fields(), round(self.epochs * (1 + self.repetitions * self.clean_ratio)))]
