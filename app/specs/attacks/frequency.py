"""Attacks whose trigger is added to an image's frequencies."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from app.specs.attacks.base import RATE_OF, CleanLabelAttack, DirtyLabelAttack, PoisoningAttack, RateOf
from app.specs.base import Preset, field, preset_field
from app.specs.facts import DatasetFacts

CTRL_CODE = "github.com/meet-cjli/CTRL, main_train.py, README and utils/frequency.py"
CTRL_BENCHMARK = "BackdoorBench, config/attack/ctrl/default.yaml"
FTROJAN = "BackdoorBench, utils/bd_img_transform/ftrojann.py and config/attack/ftrojannn"

_FTROJAN_PRESETS = {
    "benchmark": Preset("a middle and the highest frequency of images of 32 x 32 pixels.", FTROJAN, {}),
}
Frequency = Annotated[int, Field(ge=0, le=223)]


class FrequencyAttack(PoisoningAttack):
    """Base class of attacks that raise coefficients of the discrete cosine transform of an image's windows."""

    window: int | None = field(
        None,
        "Side of the windows. Null: the image's shorter side. Both sides of the image must be multiples of it.",
        unit="pixels",
        source=f"{FTROJAN}; {CTRL_CODE}",
        ge=2,
        le=224,
    )
    frequencies: tuple[Frequency, ...] | None = field(
        None,
        "Rows and columns of the coefficients that are raised. Null: the last one and the one at half of the window, "
        "15 and 31 at 32 pixels.",
        source=f"{FTROJAN}; {CTRL_CODE}",
        min_length=1,
    )
    magnitude: float

    def window_side(self, facts: DatasetFacts) -> int:
        """The side of the windows in pixels."""
        return self.window or min(facts.height, facts.width)

    def raised(self, facts: DatasetFacts) -> tuple[int, ...]:
        """Rows, and columns, of the coefficients."""
        side = self.window_side(facts)
        return self.frequencies or (side // 2 - 1, side - 1)

    def unfit(self, facts: DatasetFacts) -> Iterator[tuple[str, Any, str]]:
        side = self.window_side(facts)
        if facts.height % side or facts.width % side:
            yield "window", self.window, f"a divisor of {facts.height} and {facts.width}, the image's sides"
        elif max(self.raised(facts)) >= side:
            yield "frequencies", list(self.raised(facts)), f"0 to {side - 1}, below the window's side"


class FTrojan(DirtyLabelAttack, FrequencyAttack):
    """FTrojan (Wang et al., 2022): two frequencies of the chroma get a larger coefficient, dirty label.

    The image is cut into windows, and of each window's discrete cosine transform the coefficients (u, u) for u in
    ``frequencies`` are raised by ``magnitude``, in both chroma channels; of gray images in the gray channel.
    """

    name: Literal["ftrojan"] = "ftrojan"
    presets = _FTROJAN_PRESETS
    preset: Literal["benchmark"] = preset_field(_FTROJAN_PRESETS, "benchmark")
    magnitude: float = field(
        30.0, "What is added to a coefficient.", unit="gray levels (0-255)", source=FTROJAN, gt=0, le=10_000
    )


_CTRL_PRESETS = {
    "authors": Preset("the settings of the authors' README for CIFAR-10.", CTRL_CODE, {}),
    "benchmark": Preset(
        "BackdoorBench's rate, which is half of the target class on CIFAR-10.",
        CTRL_BENCHMARK,
        {"poisoning_rate": 0.05},
    ),
}


class Ctrl(CleanLabelAttack, FrequencyAttack):
    """CTRL (Li et al., 2023): two frequencies of the chroma are raised in target-class images, clean label.

    Published as an attack on self-supervised training, whose augmented views of a poisoned image share the trigger and
    little else. Here it poisons supervised training, as in BackdoorBench.
    """

    name: Literal["ctrl"] = "ctrl"
    presets = _CTRL_PRESETS
    preset: Literal["authors", "benchmark"] = preset_field(_CTRL_PRESETS, "authors")
    poisoning_rate: float = field(
        0.01,
        "Share of the training set (or of the target class, see rate_of) that is poisoned.",
        unit="fraction",
        source=CTRL_CODE,
        gt=0,
        le=1,
    )
    rate_of: RateOf = field("training_set", RATE_OF, source=CTRL_CODE)
    magnitude: float = field(
        100.0,
        "What is added to a coefficient in training.",
        unit="gray levels (0-255)",
        source=CTRL_CODE,
        gt=0,
        le=10_000,
    )
    test_magnitude: float | None = field(
        None,
        "What is added at test time. Null: magnitude.",
        unit="gray levels (0-255)",
        source=CTRL_CODE,
        gt=0,
        le=10_000,
    )
