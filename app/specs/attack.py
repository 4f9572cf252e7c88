"""Attacks by name: how training data is poisoned and what the trigger is.

``poisoning_rate`` is a share of ``rate_of``: of the whole training set, or of the target class alone.
"""

from typing import Annotated, Literal

from pydantic import Field

from app.specs.base import Spec, field

RateOf = Literal["training_set", "target_class"]
RATE_OF = "What poisoning_rate is a share of: the whole training set, or the target class alone."


class _Attack(Spec):
    """Fields that every poisoning attack shares."""

    target_class: int = field(
        0, "The class that a triggered image shall be given.", ge=0, source="Gu et al. 2017"
    )
    poisoning_rate: float = field(
        0.1, "Share of the images that are poisoned; see rate_of.", unit="fraction", gt=0, le=1
    )

    @property
    def clean_label_only(self) -> bool:
        """True if only images of the target class are poisoned and no label changes."""
        return False

    @property
    def share_of_target_class(self) -> bool:
        """True if poisoning_rate is a share of the target class."""
        return False


class NoAttack(Spec):
    """Nothing is poisoned. A defence run on it shows what the defence costs on clean data."""

    name: Literal["none"] = "none"


class BadNets(_Attack):
    """BadNets: a small opaque patch in a corner, dirty label."""

    name: Literal["badnets"] = "badnets"
    pattern: Literal["checkerboard", "white"] = field(
        "checkerboard",
        "What the patch shows: alternating black and white pixels, or all white.",
        source="Gu et al. 2017, section 4",
    )
    size: int = field(3, "Side of the square patch.", unit="pixels", source="Gu et al. 2017", ge=1, le=224)
    position: Literal["bottom_right", "bottom_left", "top_right", "top_left", "center"] = field(
        "bottom_right", "Where the patch sits.", source="Gu et al. 2017"
    )
    margin: int = field(0, "Distance of the patch from the image's edges.", unit="pixels", ge=0, le=112)
    opacity: float = field(
        1.0, "1 replaces the pixels, less blends the patch into them.", unit="fraction", gt=0, le=1
    )


class Blend(_Attack):
    """Blended injection: a whole-image pattern mixed into the image, dirty label."""

    name: Literal["blend"] = "blend"
    alpha: float = field(
        0.2,
        "Weight of the pattern: (1 - alpha) x + alpha pattern.",
        unit="fraction",
        source="Chen et al. 2017, section 5",
        gt=0,
        le=1,
    )
    pattern_seed: int = field(
        0, "Seed of the uniform-noise pattern, the same for every experiment seed.", ge=0, le=2**31 - 1
    )


class Sig(_Attack):
    """SIG: a horizontal sinusoid added to images of the target class; no label changes.

    ``v(i, j) = amplitude * sin(2 pi j frequency / m)``, j the column, m the width.
    """

    name: Literal["sig"] = "sig"
    rate_of: RateOf = field(
        "target_class", RATE_OF, source="Barni et al. 2019 (alpha); the document, section 4.2.2"
    )
    amplitude: float = field(
        30.0,
        "Height of the sinusoid (delta).",
        unit="grey levels (0-255)",
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


AttackSpec = Annotated[NoAttack | BadNets | Blend | Sig, Field(discriminator="name")]
