"""Attacks whose trigger covers the whole image and is computed without a model."""

import base64
from typing import Literal, Self

from pydantic import model_validator

from app.specs.attacks.base import RATE_OF, DirtyLabelAttack, RateOf
from app.specs.base import field

LONGEST_PNG = 1_000_000


class Blend(DirtyLabelAttack):
    """Blended injection (Chen et al., 2017): a whole-image pattern mixed into the image, dirty label.

    The pattern is noise, a training image of the data set, or an upload.
    """

    name: Literal["blend"] = "blend"
    alpha: float = field(
        0.2,
        "Weight of the pattern: (1 - alpha) x + alpha pattern.",
        unit="fraction",
        source="Chen et al. 2017, section 5",
        gt=0,
        le=1,
    )
    pattern: Literal["noise", "image", "png"] = field(
        "noise",
        "noise: uniform noise from pattern_seed. image: the training image pattern_index. png: pattern_png.",
        source="Chen et al. 2017, section 5 (random pattern, picture)",
    )
    pattern_seed: int = field(
        0,
        "Seed of the noise, the same for every experiment seed; read only if pattern is noise.",
        ge=0,
        le=2**31 - 1,
    )
    pattern_index: int | None = field(
        None,
        "Which training image is the pattern, counted in the (sub)set that is trained on; goes with pattern image.",
        ge=0,
    )
    pattern_png: str | None = field(
        None,
        "The pattern as a PNG file in base64; goes with pattern png. It must have the images' width and height, "
        "be gray where they are and in color where they are, 8 bits a channel, without transparency.",
        max_length=LONGEST_PNG,
    )

    @model_validator(mode="after")
    def _one_pattern(self) -> Self:
        for kind, name in (("image", "pattern_index"), ("png", "pattern_png")):
            if (self.pattern == kind) != (getattr(self, name) is not None):
                raise ValueError(f"{name} goes with pattern {kind!r}, and pattern is {self.pattern!r}")
        if self.pattern_png is not None:
            try:
                base64.b64decode(self.pattern_png, validate=True)
            except ValueError as error:
                raise ValueError(f"pattern_png must be base64: {error}") from error
        return self


class Sig(DirtyLabelAttack):
    """SIG (Barni et al., 2019): a horizontal sinusoid added to images of the target class; no label changes.

    ``v(i, j) = amplitude * sin(2 pi j frequency / m)``, j the column, m the width.
    """

    name: Literal["sig"] = "sig"
    rate_of: RateOf = field(
        "target_class", RATE_OF, source="Barni et al. 2019 (alpha); the document, section 4.2.2"
    )
    amplitude: float = field(
        30.0,
        "Height of the sinusoid (delta).",
        unit="gray levels (0-255)",
        source="the document, section 4.2.2",
        gt=0,
        le=255,
    )
    frequency: float = field(
        6.0,
        "Periods across the image (f).",
        unit="periods",
        source="Barni et al. 2019, section 3",
        gt=0,
        le=112,
    )
    clean_label: bool = field(
        True,
        "True poisons only target-class images and keeps labels; false poisons any image and relabels it.",
        source="Barni et al. 2019",
    )

    @property
    def clean_label_only(self) -> bool:
        return self.clean_label

    @property
    def share_of_target_class(self) -> bool:
        return self.rate_of == "target_class"


class LowFrequency(DirtyLabelAttack):
    """Low-frequency trigger (Zeng et al., 2021): a smooth pattern that frequency analysis does not show.

    The pattern is a random mix of the lowest cosine waves in both directions. The authors also search for the mix
    that suits a trained model best; that search is left out, so the trigger needs no training.
    """

    name: Literal["low_frequency"] = "low_frequency"
    amplitude: float = field(
        16.0, "Largest change of a pixel.", unit="gray levels (0-255)", source="chosen here", gt=0, le=255
    )
    waves: int = field(
        4,
        "How many cosine waves there are in each direction, the constant one included.",
        unit="waves",
        source="chosen here: an eighth of CIFAR-10's 32",
        ge=2,
        le=224,
    )
    pattern_seed: int = field(0, "Seed of the mix, the same for every experiment seed.", ge=0, le=2**31 - 1)


class Refool(DirtyLabelAttack):
    """Reflection backdoor (Liu et al., 2020): another picture is reflected in the image, dirty label.

    The reflected pictures are training images of the data set, drawn from the seed; which of them an image gets
    follows from its pixels. A reflection is out of focus (blurred) or a ghost (two shifted copies).
    """

    name: Literal["refool"] = "refool"
    reflections: int = field(
        1, "How many pictures are reflected.", unit="images", source="chosen here", ge=1, le=200
    )
    weight: float = field(
        0.25,
        "Weight of the reflection in linear light; the image has one minus this.",
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
        "Deviation of the Gaussian blur of the others, for an image 32 pixels wide; it grows with the width.",
        unit="pixels",
        source="the authors' code: 1 to 5 at random",
        gt=0,
        le=20,
    )
