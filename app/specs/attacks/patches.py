"""Attacks with a small trigger at a fixed position."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from app.specs.attacks.base import (
    LONGEST_PNG,
    DirtyLabelAttack,
    PictureAttack,
    Position,
    PreparationStage,
    SquarePatchAttack,
    SurrogateAttack,
)
from app.specs.base import Preset, field, preset_field
from app.specs.facts import DatasetFacts
from app.specs.pictures import PngFacts

GU = "Gu et al. 2017, section 4.1 (MNIST, bottom right)"
ABL_GRID = "github.com/bboylyg/ABL, data_loader.py (gridTrigger)"
BENCHMARK = "github.com/SCLBD/BackdoorBench"
TRAN = "github.com/MadryLab/backdoor_data_poisoning, config.json"
TROJAN_BENCHMARK = f"{BENCHMARK}, config/attack/trojannn and attack/trojannn.py"
CHOSEN = "chosen here"

_BADNETS_PRESETS = {
    "paper": Preset(
        "the pattern of bright and dark pixels of the paper, in a corner, as the grid of 3 x 3 that defenses on "
        "CIFAR-10 use.",
        f"{GU}; {ABL_GRID}",
        {},
    ),
    "benchmark": Preset(
        "the white square of BackdoorBench.",
        f"{BENCHMARK}, config/attack/badnet and resource/badnet/trigger_image.png",
        {"pattern": "white"},
    ),
}

_SINGLE_PIXEL_PRESETS = {
    "recommended": Preset(
        "a white pixel in the center, which no random crop removes: an attack success rate of 91 to 93 % "
        "(docs/results/attacks-cifar10.md, three seeds). One near the corner had 17 % with the network of version 0.1.",
        CHOSEN,
        {},
    ),
    "authors": Preset(
        "place and color of the published configuration for CIFAR-10. The authors poison images of one class only, "
        "which is not possible here.",
        TRAN,
        {"row": 11, "column": 16, "value": (101, 0, 25)},
    ),
}

_TROJAN_PRESETS = {
    "recommended": Preset(
        "neurons, their target and the number of steps are those of BackdoorBench. The patch is opaque and square, "
        "and optimized with Adam on clean images that carry it; there it has the shape of an apple, is added to the "
        "image, and is optimized on black with steps along the gradient's sign.",
        f"{CHOSEN}; {TROJAN_BENCHMARK}",
        {},
    ),
}


class PatchAttack(PictureAttack, SquarePatchAttack):
    """Base class of attacks whose trigger is a black and white patch, or a picture of the user's own."""

    whole_image: ClassVar[bool] = False
    pattern: Literal["checkerboard", "white", "png"] = field(
        "checkerboard",
        "Pattern of the patch: alternating black and white pixels, all white, or the picture pattern_png. The "
        "checkerboard of 3 x 3 is the published one, whose top left pixel is black.",
        source=f"{GU}; {ABL_GRID}",
    )
    pattern_png: str | None = field(
        None,
        "PNG file in base64. Required if pattern is png. It has its own width and height, up to those of the image, "
        "the dataset's colors (gray or RGB), and 8 bits per channel. Where it is transparent, the image shows, in "
        "proportion.",
        source="chosen here",
        added_later=True,
        max_length=LONGEST_PNG,
    )
    size: int = field(
        3,
        "Side of the square patch. Not used if pattern is png.",
        unit="pixels",
        source=ABL_GRID,
        ge=1,
        le=224,
    )
    position: Position = field("bottom_right", "Position of the patch.", source=GU)
    margin: int = field(
        0, "Distance of the patch from the image's edges.", unit="pixels", source=ABL_GRID, ge=0, le=112
    )
    opacity: float = field(
        1.0,
        "Opacity of the patch. 1: the patch replaces the pixels; below 1: it is blended with them.",
        unit="fraction",
        source=GU,
        gt=0,
        le=1,
    )
    test_opacity: float | None = field(
        None,
        "Opacity of the patch at test time. Null: opacity, as in training.",
        unit="fraction",
        source="chosen here",
        added_later=True,
        gt=0,
        le=1,
    )

    def _fits(self, picture: PngFacts, facts: DatasetFacts) -> bool:
        return picture.width + self.margin <= facts.width and picture.height + self.margin <= facts.height


class BadNets(PatchAttack):
    """BadNets (Gu et al., 2017): a small opaque patch in a corner, dirty label."""

    name: Literal["badnets"] = "badnets"
    presets = _BADNETS_PRESETS
    preset: Literal["paper", "benchmark"] = preset_field(_BADNETS_PRESETS, "paper")


Gray = Annotated[int, Field(ge=0, le=255)]


class SinglePixel(DirtyLabelAttack):
    """Single pixel (Gu et al., 2017; Tran et al., 2018): one pixel is set to a fixed value, dirty label."""

    name: Literal["single_pixel"] = "single_pixel"
    presets = _SINGLE_PIXEL_PRESETS
    preset: Literal["recommended", "authors"] = preset_field(_SINGLE_PIXEL_PRESETS, "recommended")
    row: int | None = field(
        None,
        "Row of the pixel from the top. Negative: from the bottom; -1 is the last row. Null: half the height.",
        unit="pixels",
        source=f"{CHOSEN}; {TRAN}: 11; {GU}",
        ge=-224,
        le=223,
    )
    column: int | None = field(
        None,
        "Column of the pixel from the left. Negative: from the right; -1 is the last column. Null: half the width.",
        unit="pixels",
        source=f"{CHOSEN}; {TRAN}: 16; {GU}",
        ge=-224,
        le=223,
    )
    value: tuple[Gray, ...] | Gray = field(
        255,
        "Value of the pixel in every channel, or a list with one value per channel.",
        unit="gray level (0-255)",
        source=f"{GU}; {TRAN}: (101, 0, 25)",
    )

    def unfit(self, facts: DatasetFacts) -> Iterator[tuple[str, Any, str]]:
        for name, length in (("row", facts.height), ("column", facts.width)):
            value = getattr(self, name)
            if value is not None and not -length <= value < length:
                yield name, value, f"-{length} to {length - 1}, a {name} of the image"
        if len(self.values(facts.channels)) != facts.channels:
            yield (
                "value",
                self.model_dump(mode="json")["value"],
                f"one value, or {facts.channels}, one per channel",
            )

    def values(self, channels: int) -> tuple[int, ...]:
        """Value of the pixel in each of the ``channels``."""
        return (self.value,) * channels if isinstance(self.value, int) else self.value


class Trojan(DirtyLabelAttack, SurrogateAttack, SquarePatchAttack):
    """Trojan patch (Liu et al., 2018): a patch optimized to activate chosen neurons of a surrogate, dirty label.

    The neurons are those before the last layer with the largest weights in it. The patch is optimized by gradient
    descent until clean images with the patch activate them strongly.
    """

    name: Literal["trojan"] = "trojan"
    presets = _TROJAN_PRESETS
    preset: Literal["recommended"] = preset_field(_TROJAN_PRESETS, "recommended")
    size: int = field(3, "Side of the square patch.", unit="pixels", source=CHOSEN, ge=1, le=224)
    position: Position = field("bottom_right", "Position of the patch.", source="Liu et al. 2018")
    margin: int = field(
        0, "Distance of the patch from the image's edges.", unit="pixels", source=CHOSEN, ge=0, le=112
    )
    patch_neurons: int = field(
        2,
        "Number of neurons that the patch activates.",
        unit="neurons",
        source=f"{TROJAN_BENCHMARK} (num_neuron)",
        ge=1,
        le=64,
    )
    patch_steps: int = field(
        1000,
        "Gradient steps on the patch.",
        unit="steps",
        source=f"{TROJAN_BENCHMARK} (mask_update_iters)",
        ge=1,
        le=100_000,
    )
    patch_activation: float = field(
        100.0,
        "Target activation of the neurons, far above what a network without the patch reaches.",
        source=f"{TROJAN_BENCHMARK} (neuron_target_values)",
        gt=0,
        le=1e6,
    )
    patch_learning_rate: float = field(
        0.015,
        "Learning rate of Adam for the patch, on pixels in [0, 1].",
        source=CHOSEN,
        gt=0,
        le=1,
    )

    def stages(self) -> list[PreparationStage]:
        patch = self.fields_with("patch_") | {
            "size": self.size,
            "position": self.position,
            "margin": self.margin,
        }
        return [self.surrogate_stage(), PreparationStage("trigger", patch, 1)]
