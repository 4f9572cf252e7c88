"""Attacks whose trigger covers the whole image and needs no model."""

import base64
from typing import Literal, Self

from pydantic import model_validator

from app.specs.attacks.base import RATE_OF, DirtyLabelAttack, RateOf
from app.specs.base import field

LONGEST_PNG = 1_000_000


class Blend(DirtyLabelAttack):
    """Blended injection (Chen et al., 2017): a pattern is blended into the whole image, dirty label.

    The pattern is noise, a training image of the dataset, or an uploaded image.
    """

    name: Literal["blend"] = "blend"
    alpha: float = field(
        0.2,
        "Weight of the pattern: (1 - alpha) * image + alpha * pattern.",
        unit="fraction",
        source="Chen et al. 2017, section 5",
        gt=0,
        le=1,
    )
    pattern: Literal["noise", "image", "png"] = field(
        "noise",
        "noise: uniform noise drawn by pattern_seed. image: the training image pattern_index. png: pattern_png.",
        source="Chen et al. 2017, section 5 (random pattern, picture)",
    )
    pattern_seed: int = field(
        0,
        "Seed of the noise, independent of the experiment's seeds. Used only if pattern is noise.",
        ge=0,
        le=2**31 - 1,
    )
    pattern_index: int | None = field(
        None,
        "Index of the training image, in the subset used. Required if pattern is image.",
        ge=0,
    )
    pattern_png: str | None = field(
        None,
        "PNG file in base64. Required if pattern is png. It must have the width, height and colors (gray or RGB) of "
        "the dataset's images, 8 bits per channel and no transparency.",
        max_length=LONGEST_PNG,
    )

    @model_validator(mode="after")
    def _check_pattern(self) -> Self:
        for kind, name in (("image", "pattern_index"), ("png", "pattern_png")):
            if (self.pattern == kind) != (getattr(self, name) is not None):
                raise ValueError(f"{name} is required if pattern is {kind!r}, and not allowed otherwise")
        if self.pattern_png is not None:
            try:
                base64.b64decode(self.pattern_png, validate=True)
            except ValueError as error:
                raise ValueError(f"pattern_png must be base64: {error}") from error
        return self


class Sig(DirtyLabelAttack):
    """SIG (Barni et al., 2019): a sinusoid along the rows is added to target-class images, clean label.

    ``v(i, j) = amplitude * sin(2 pi j frequency / m)`` for column j of m.
    """

    name: Literal["sig"] = "sig"
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

    @property
    def clean_label_only(self) -> bool:
        return self.clean_label

    @property
    def share_of_target_class(self) -> bool:
        return self.rate_of == "target_class"


class LowFrequency(DirtyLabelAttack):
    """Low-frequency trigger (Zeng et al., 2021): a smooth pattern that frequency analysis does not detect, dirty label.

    The pattern is a random mixture of the lowest cosine waves in both directions. The authors optimize the mixture on a
    trained model; here it is not optimized, so that no model is needed.
    """

    name: Literal["low_frequency"] = "low_frequency"
    amplitude: float = field(
        16.0, "Largest change of a pixel.", unit="gray levels (0-255)", source="chosen here", gt=0, le=255
    )
    waves: int = field(
        4,
        "Number of cosine waves in each direction, including the constant one.",
        unit="waves",
        source="chosen here: an eighth of CIFAR-10's 32",
        ge=2,
        le=224,
    )
    pattern_seed: int = field(
        0, "Seed of the mixture, independent of the experiment's seeds.", ge=0, le=2**31 - 1
    )


class Refool(DirtyLabelAttack):
    """Refool, reflection backdoor (Liu et al., 2020): the reflection of another image is added, dirty label.

    The reflected images are training images drawn by the seed; a hash of an image's pixels selects its reflection.
    A reflection is out of focus (blurred) or a ghost (two shifted copies).
    """

    name: Literal["refool"] = "refool"
    reflections: int = field(
        1, "Number of different reflections.", unit="images", source="chosen here", ge=1, le=200
    )
    weight: float = field(
        0.25,
        "Weight of the reflection in linear light; the image has the weight 1 - weight.",
        unit="fraction",
        source="the authors' code: 0.05 to 0.45 at random",
        gt=0,
        lt=1,
    )
    ghost_rate: float = field(
        0.49,
        "Share of the reflections that are ghosts.",
        unit="fraction",
        source="the authors' code",
        ge=0,
        le=1,
    )
    blur: float = field(
        2.0,
        "Standard deviation of the Gaussian blur of the other reflections at an image width of 32; in proportion at "
        "other widths.",
        unit="pixels",
        source="the authors' code: 1 to 5 at random",
        gt=0,
        le=20,
    )
