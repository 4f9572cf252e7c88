"""Input detections, which score inputs at test time and leave the victim as it is."""

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field

from app.specs.base import Preset, field, preset_field
from app.specs.defenses.base import CleanSetDefense, Defense, Kind
from app.specs.defenses.detection import (
    STRIP_PRESETS,
    TOOLBOX,
    EntropyThreshold,
    entropy_threshold_field,
    false_positive_rate_field,
    overlay_weight_field,
    overlays_field,
)

BACKDOORBOX = "THUYimingLi/BackdoorBox"
SCALE_UP_AUTHORS = "JunfengGo/SCALE-UP"
_SCALE_UP_PRESETS = {
    "toolbox": Preset("five factors and no clean data, as backdoor-toolbox calls it.", TOOLBOX, {}),
    "backdoorbox": Preset(
        "five factors, scores normalized by those of the clean set, as BackdoorBox does with a validation set.",
        BACKDOORBOX,
        {"normalize": True},
    ),
    "authors": Preset(
        "the factors 1 to 11, of which 1 always agrees.", SCALE_UP_AUTHORS, {"scales": tuple(range(1, 12))}
    ),
}
_IBD_PSC_PRESETS = {
    "authors": Preset("the settings of the code that the paper names.", BACKDOORBOX, {}),
}
TECO_AUTHORS = "CGCL-codes/TeCo"
CORRUPTIONS = "bethgelab/imagecorruptions"
_TECO_PRESETS = {
    "authors": Preset(
        "every corruption that needs no photographs, at five severities; BackdoorBench has the same code.",
        TECO_AUTHORS,
        {},
    ),
}
CHOU = "Chou et al. 2020"
_SENTINET_PRESETS = {
    "toolbox": Preset(
        "the 0.9 quantile of the clean images' distances from the curve; backdoor-toolbox calls it with this rate.",
        TOOLBOX,
        {},
    ),
    "paper": Preset(
        "the mean distance of the clean images below the curve, as far above it.",
        CHOU,
        {"threshold": "boundary"},
    ),
}
Corruption = Literal[
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
]
PASSES_OF_AN_EPOCH = 8
"""Forward passes over the test images that take about as long as an epoch of training; for progress only."""


class InputDetection(Defense):
    """Base class of input detections."""

    kind: ClassVar[Kind] = "input_detection"

    @property
    def passes(self) -> int:
        """Forward passes of the network for one input."""
        raise NotImplementedError

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        return [("input_detection", self.fields(), max(1, self.passes // PASSES_OF_AN_EPOCH))]


class StripInputs(InputDetection, CleanSetDefense):
    """STRIP (Gao et al., 2019) at test time: flag inputs whose prediction stays confident under overlaid images."""

    name: Literal["strip_inputs"] = "strip_inputs"
    presets = STRIP_PRESETS
    preset: Literal["recommended", "benchmark"] = preset_field(STRIP_PRESETS, "recommended")
    overlays: int = overlays_field()
    overlay_weight: float = overlay_weight_field()
    false_positive_rate: float = false_positive_rate_field()
    threshold: EntropyThreshold = entropy_threshold_field()

    @property
    def passes(self) -> int:
        return self.overlays


class ScaleUp(InputDetection, CleanSetDefense):
    """SCALE-UP (Guo et al., 2023): flag inputs whose predicted class stays the same when pixels are amplified."""

    name: Literal["scale_up"] = "scale_up"
    presets = _SCALE_UP_PRESETS
    preset: Literal["toolbox", "backdoorbox", "authors"] = preset_field(_SCALE_UP_PRESETS, "toolbox")
    scales: tuple[Annotated[int, Field(ge=1, le=255)], ...] = field(
        (3, 5, 7, 9, 11),
        "Factors by which all gray levels are multiplied; results are clipped at 255.",
        source=f"{TOOLBOX}; {BACKDOORBOX}; {SCALE_UP_AUTHORS} takes 1 to 11",
        min_length=1,
        max_length=32,
    )
    normalize: bool = field(
        False,
        "Subtract the mean consistency of the clean set, and divide by its deviation (data-limited). Otherwise the "
        "clean set is not used.",
        source=f"{TOOLBOX}'s call; {BACKDOORBOX} with a validation set does",
    )
    threshold: float = field(
        0.5,
        "Consistency from which an input is flagged: the share of the factors that leave its class unchanged, or the "
        "normalized share.",
        source=f"{TOOLBOX}; {BACKDOORBOX}",
        ge=-10,
        le=10,
    )

    @property
    def passes(self) -> int:
        return 1 + len(self.scales)


class IbdPsc(InputDetection, CleanSetDefense):
    """IBD-PSC (Hou et al., 2024): flag inputs that stay confident when batch normalization layers are amplified."""

    needs_batch_norm: ClassVar[bool] = True
    name: Literal["ibd_psc"] = "ibd_psc"
    presets = _IBD_PSC_PRESETS
    preset: Literal["authors"] = preset_field(_IBD_PSC_PRESETS, "authors")
    amplification: float = field(
        1.5,
        "Factor by which weight and bias of an amplified layer are multiplied.",
        source=f"{BACKDOORBOX}; {TOOLBOX}",
        gt=1,
        le=100,
    )
    models: int = field(
        5,
        "Number of amplified models. Each has one amplified layer more than the one before, from the last layer on.",
        unit="models",
        source=f"{BACKDOORBOX}; {TOOLBOX}",
        ge=1,
        le=64,
    )
    error_rate: float = field(
        0.6,
        "The fewest amplified layers are those that misclassify more than this share of the clean set; the first model "
        "has one more.",
        unit="fraction",
        source=f"{BACKDOORBOX}; {TOOLBOX}",
        gt=0,
        lt=1,
    )
    threshold: float = field(
        0.9,
        "Mean confidence in the class that the victim predicts from which an input is flagged.",
        unit="fraction",
        source=f"{BACKDOORBOX}; {TOOLBOX}",
        gt=0,
        lt=1,
    )

    @property
    def passes(self) -> int:
        return 1 + self.models


class Teco(InputDetection, CleanSetDefense):
    """TeCo (Liu et al., 2023): flag inputs whose class changes at very different severities of corruptions."""

    name: Literal["teco"] = "teco"
    presets = _TECO_PRESETS
    preset: Literal["authors"] = preset_field(_TECO_PRESETS, "authors")
    corruptions: tuple[Corruption, ...] = field(
        get_args(Corruption),
        "Corruptions, each of which is applied to the input at every severity.",
        source=f"{TECO_AUTHORS}; {CORRUPTIONS}",
        min_length=2,
        max_length=len(get_args(Corruption)),
    )
    severities: int = field(
        5,
        "Largest severity.",
        source=f"{TECO_AUTHORS}; {CORRUPTIONS}",
        ge=1,
        le=5,
    )
    false_positive_rate: float = field(
        0.05,
        "Share of the clean set to flag: sets the threshold, which the authors do not choose.",
        unit="fraction",
        source="chosen here",
        gt=0,
        lt=0.5,
    )

    @property
    def passes(self) -> int:
        return 1 + len(self.corruptions) * self.severities


class SentiNet(InputDetection, CleanSetDefense):
    """SentiNet (Chou et al., 2020): flag inputs whose most important region also decides the class of other images."""

    needs_spatial_maps: ClassVar[bool] = True
    name: Literal["sentinet"] = "sentinet"
    presets = _SENTINET_PRESETS
    preset: Literal["toolbox", "paper"] = preset_field(_SENTINET_PRESETS, "toolbox")
    region: float = field(
        0.15,
        "Share of an input's pixels that are its region: those with the largest values of Grad-CAM.",
        unit="fraction",
        source=f"{TOOLBOX}; {CHOU}",
        gt=0,
        lt=1,
    )
    backgrounds: int = field(
        100,
        "Number of clean images that the region is pasted on; at most half of the clean set. The others set the "
        "threshold.",
        unit="images",
        source=f"{TOOLBOX}; BackdoorBench's clean_sample_num",
        ge=1,
        le=1000,
    )
    bin_width: float = field(
        0.02,
        "Width of the intervals of confidence in which the highest clean image is taken to fit the curve.",
        unit="fraction",
        source=TOOLBOX,
        gt=0,
        le=1,
    )
    threshold: Literal["quantile", "boundary"] = field(
        "quantile",
        "How the threshold follows from the distances of clean images from the curve. quantile: false_positive_rate of "
        "them are flagged. boundary: it is the mean distance of those below the curve.",
        source=f"{TOOLBOX}; {CHOU}",
    )
    false_positive_rate: float = field(
        0.1,
        "Share of the clean images to flag, of those that set the threshold; for threshold quantile.",
        unit="fraction",
        source=TOOLBOX,
        gt=0,
        lt=0.5,
    )

    @property
    def passes(self) -> int:
        return 2 + 2 * self.backgrounds
