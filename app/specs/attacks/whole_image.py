"""Attacks whose trigger covers the whole image and needs no model."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from app.specs.attacks.base import (
    LONGEST_PNG,
    RATE_OF,
    EitherLabelAttack,
    PictureAttack,
    PreparationStage,
    RateOf,
    SurrogateAttack,
)
from app.specs.base import Preset, field, preset_field
from app.specs.facts import DatasetFacts

BENCHMARK = "BackdoorBench's published settings (Wu et al. 2022)"
REFOOL_CODE = "BackdoorBench, attack/refool.py"
ZENG_CODE = "YiZeng623/frequency-backdoor, gauss_smooth.py"
ZENG_SEARCH = "YiZeng623/frequency-backdoor, target_universal.py"

_BLEND_PRESETS = {
    "paper": Preset("a random pattern with a weight of 0.2.", "Chen et al. 2017, section 5", {}),
}
_SIG_PRESETS = {
    "document": Preset(
        "amplitude 30 and a tenth of the target class, as the document that this project reproduces.",
        "the document, section 4.2.2",
        {},
    ),
    "benchmark": Preset(
        "amplitude 40 and a tenth of the training set, which is the whole target class of CIFAR-10.",
        BENCHMARK,
        {"amplitude": 40.0, "rate_of": "training_set"},
    ),
}
_LOW_FREQUENCY_PRESETS = {
    "recommended": Preset(
        "a smooth pattern in the authors' range of gray levels that is not searched, so that no model is needed.",
        ZENG_CODE,
        {},
    ),
    "authors": Preset(
        "the pattern is searched for with a surrogate, smoothed and scaled as in the authors' code.",
        ZENG_SEARCH,
        {"pattern": "search"},
    ),
}
_REFOOL_PRESETS = {
    "recommended": Preset(
        "dirty label, with strengths and blurs drawn from the authors' ranges: the comparison with other attacks at "
        "the same rate.",
        REFOOL_CODE,
        {},
    ),
    "paper": Preset(
        "clean label: target-class images are poisoned and keep their label.",
        "Liu et al. 2020, section 3",
        {"clean_label": True, "rate_of": "target_class"},
    ),
    "benchmark": Preset(
        "a fixed weight of 0.6, since random ones make the attack unstable.", REFOOL_CODE, {"weight": 0.6}
    ),
}


class PatternAttack(PictureAttack):
    """Base class of attacks whose field ``pattern`` chooses what is put over the image, such as an uploaded picture."""

    pattern_png: str | None = field(
        None,
        "PNG file in base64. Required if pattern is png. It must have the width, height and colors (gray or RGB) of "
        "the dataset's images, and 8 bits per channel. Where it is transparent, the image shows, in proportion; "
        "low_frequency allows no transparency.",
        source="Chen et al. 2017, section 5",
        max_length=LONGEST_PNG,
    )


class BlendedAttack(PatternAttack):
    """Base class of attacks that blend a pattern into the whole image: noise, a training image, or an uploaded one."""

    requires: ClassVar[dict[str, str]] = {"image": "pattern_index", "png": "pattern_png"}
    pattern: Literal["noise", "image", "png"] = field(
        "noise",
        "noise: uniform noise drawn by pattern_seed. image: the training image pattern_index. png: pattern_png.",
        source="Chen et al. 2017, section 5 (random pattern, picture)",
    )
    pattern_seed: int = field(
        0,
        "Seed of the noise, independent of the experiment's seeds. Used only if pattern is noise.",
        source="chosen here",
        ge=0,
        le=2**31 - 1,
    )
    pattern_index: int | None = field(
        None,
        "Index of the training image, in the subset used. Required if pattern is image.",
        source="Chen et al. 2017, section 5",
        ge=0,
    )

    def unfit(self, facts: DatasetFacts) -> Iterator[tuple[str, Any, str]]:
        yield from super().unfit(facts)
        if self.pattern_index is not None and self.pattern_index >= facts.train_size:
            yield "pattern_index", self.pattern_index, f"0 to {facts.train_size - 1}, a training image"


class Blend(BlendedAttack):
    """Blended injection (Chen et al., 2017): a pattern is blended into the whole image, dirty label.

    The pattern is noise, a training image of the dataset, or an uploaded image.
    """

    name: Literal["blend"] = "blend"
    presets = _BLEND_PRESETS
    preset: Literal["paper"] = preset_field(_BLEND_PRESETS, "paper")
    alpha: float = field(
        0.2,
        "Weight of the pattern: (1 - alpha) * image + alpha * pattern.",
        unit="fraction",
        source="Chen et al. 2017, section 5",
        gt=0,
        le=1,
    )
    test_alpha: float | None = field(
        None,
        "Weight of the pattern at test time. Null: alpha, as in training.",
        unit="fraction",
        source="chosen here",
        added_later=True,
        gt=0,
        le=1,
    )


class Sig(EitherLabelAttack):
    """SIG (Barni et al., 2019): a sinusoid along the rows is added to target-class images, clean label.

    ``v(i, j) = amplitude * sin(2 pi j frequency / m)`` for column j of m.
    """

    name: Literal["sig"] = "sig"
    presets = _SIG_PRESETS
    preset: Literal["document", "benchmark"] = preset_field(_SIG_PRESETS, "document")
    poisoning_rate: float = field(
        0.1,
        "Share of the target class (or of the training set, see rate_of) that is poisoned.",
        unit="fraction",
        source="the document, section 4.2.2",
        gt=0,
        le=1,
    )
    rate_of: RateOf = field(
        "target_class", RATE_OF, source="Barni et al. 2019 (alpha); the document, section 4.2.2"
    )
    amplitude: float = field(
        30.0,
        "Amplitude of the sinusoid (delta).",
        unit="gray levels (0-255)",
        source="the document, section 4.2.2",
        gt=0,
        le=255,
    )
    frequency: float = field(
        6.0,
        "Periods across the image's width (f).",
        unit="periods",
        source="Barni et al. 2019, section 3",
        gt=0,
        le=112,
    )
    clean_label: bool = field(
        True,
        "true: poison target-class images and keep their labels. false: poison other images and relabel them.",
        source="Barni et al. 2019",
    )


class LowFrequency(PatternAttack, SurrogateAttack):
    """Low-frequency trigger (Zeng et al., 2021): a smooth pattern is added to the image, dirty label.

    The pattern is a random mixture of the lowest cosine waves, an uploaded picture, or the authors': a perturbation
    that is searched for with a surrogate and smoothed. It is scaled to 0 to ``amplitude`` gray levels.
    """

    name: Literal["low_frequency"] = "low_frequency"
    allows_transparency: ClassVar[bool] = False
    presets = _LOW_FREQUENCY_PRESETS
    preset: Literal["recommended", "authors"] = preset_field(_LOW_FREQUENCY_PRESETS, "recommended")
    pattern: Literal["mixture", "search", "png"] = field(
        "mixture",
        "mixture: cosine waves mixed by pattern_seed. search: found with a surrogate, by the fields search_ and "
        "surrogate_. png: pattern_png.",
        source="chosen here, so that no model is needed; " + ZENG_SEARCH,
    )
    amplitude: float = field(
        51.0,
        "Largest value of the pattern, whose smallest is 0: a fifth of the full scale.",
        unit="gray levels (0-255)",
        source=ZENG_CODE,
        gt=0,
        le=255,
    )
    test_amplitude: float | None = field(
        None,
        "Largest value of the pattern at test time. Null: amplitude, as in training.",
        unit="gray levels (0-255)",
        source="chosen here",
        added_later=True,
        gt=0,
        le=255,
    )
    waves: int = field(
        4,
        "Number of cosine waves in each direction, including the constant one. Used only if pattern is mixture.",
        unit="waves",
        source="chosen here: an eighth of CIFAR-10's 32",
        ge=2,
        le=224,
    )
    pattern_seed: int = field(
        0,
        "Seed of the mixture, independent of the experiment's seeds. Used only if pattern is mixture.",
        source="chosen here",
        ge=0,
        le=2**31 - 1,
    )
    search_images: int = field(
        100, "Training images that the search is made on.", unit="images", source=ZENG_SEARCH, ge=1, le=10_000
    )
    search_success: float = field(
        0.2,
        "The search ends when the pattern changes the prediction of this share of these images.",
        unit="fraction",
        source=ZENG_SEARCH + " (1 - delta)",
        gt=0,
        le=1,
    )
    search_passes: int = field(
        10,
        "Passes over these images after which the search ends in any case; the authors set no limit.",
        unit="passes",
        source="chosen here",
        ge=1,
        le=1000,
    )
    search_smoothing: float = field(
        6.0,
        "Deviation of the Gaussian filter that smooths the pattern, on CIFAR-10's 32 pixels.",
        unit="pixels",
        source=ZENG_CODE,
        gt=0,
        le=224,
    )

    def stages(self) -> list[PreparationStage]:
        if self.pattern != "search":
            return []
        search = self.fields_with("search_", "target_class", "amplitude")
        return [self.surrogate_stage(), PreparationStage("trigger", search, 1)]

    def unfit(self, facts: DatasetFacts) -> Iterator[tuple[str, Any, str]]:
        yield from super().unfit(facts)
        side = min(facts.height, facts.width)
        if self.waves > side:
            yield "waves", self.waves, f"at most {side}, the image's shorter side"


class Refool(EitherLabelAttack):
    """Refool, reflection backdoor (Liu et al., 2020): the reflection of another image is added.

    The reflected images are training images drawn by the seed; a hash of an image's pixels selects its reflection.
    A reflection is out of focus (blurred) or a ghost (two shifted copies), with a strength of its own. Dirty label by
    default; the paper's attack is clean-label.
    """

    name: Literal["refool"] = "refool"
    presets = _REFOOL_PRESETS
    preset: Literal["recommended", "paper", "benchmark"] = preset_field(_REFOOL_PRESETS, "recommended")
    reflections: int = field(
        20,
        "Number of different reflections, at most the number of training images.",
        unit="images",
        source="chosen here; the authors select 200",
        ge=1,
        le=200,
    )
    weight: float | None = field(
        None,
        "Weight of a ghost in linear light; a blurred reflection has (1 + weight) / 2 in its middle. The image has the "
        "weight 1 - weight. Null: drawn for each reflection between 0.05 and 0.45.",
        unit="fraction",
        source=REFOOL_CODE,
        gt=0,
        lt=1,
    )
    ghost_rate: float = field(
        0.49,
        "Share of the reflections that are ghosts.",
        unit="fraction",
        source=REFOOL_CODE,
        ge=0,
        le=1,
    )
    blur: float | None = field(
        None,
        "Standard deviation of the Gaussian blur of the other reflections at an image width of 32; in proportion at "
        "other widths. Null: drawn for each reflection between 1 and 5.",
        unit="pixels",
        source=REFOOL_CODE,
        gt=0,
        le=20,
    )

    def unfit(self, facts: DatasetFacts) -> Iterator[tuple[str, Any, str]]:
        if self.reflections > facts.train_size:
            yield "reflections", self.reflections, f"at most {facts.train_size}, all training images"
