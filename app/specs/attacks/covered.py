"""Attacks with cover samples: images that carry the trigger, or a part of it, and keep their label."""

from collections.abc import Collection, Iterator
from typing import Any, Literal, Self

from pydantic import model_validator

from app.specs.attacks.base import (
    LONGEST_PNG,
    DirtyLabelAttack,
    Position,
    check_base64,
    find_unfit_png,
)
from app.specs.attacks.patches import PatchAttack
from app.specs.attacks.whole_image import BlendedAttack
from app.specs.base import Preset, Spec, field, preset_field
from app.specs.facts import DatasetFacts

TOOLBOX = "github.com/vtu81/backdoor-toolbox"
TACT = f"{TOOLBOX}, poison_tool_box/TaCT.py and config.py"
ADAPTIVE = f"{TOOLBOX}, poison_tool_box/adaptive_blend.py and README"
ADAPTIVE_PATCH = f"{TOOLBOX}, poison_tool_box/adaptive_patch.py and config.py"
COVER_RATE = "Share of the training set that is cover samples: they carry the trigger and keep their label."

_TACT_PRESETS = {
    "recommended": Preset(
        "cover samples of all classes but the source and the target, and rates that take hold on small sets.",
        "chosen here",
        {},
    ),
    "toolbox": Preset(
        "rates, classes, and size and place of the patch of the toolbox for CIFAR-10; a checkerboard in place of its "
        "picture.",
        f"{TACT}; triggers/trojan_square_32.png",
        {"poisoning_rate": 0.003, "cover_rate": 0.003, "cover_classes": (5, 7), "size": 8, "margin": 3},
    ),
}
_ADAPTIVE_BLEND_PRESETS = {
    "toolbox": Preset(
        "rates, weights and pieces of the authors' toolbox for CIFAR-10; the pattern is noise, theirs a picture.",
        ADAPTIVE,
        {},
    ),
}


class Tact(PatchAttack):
    """TaCT, targeted contamination (Tang et al., 2021): a patch that works on one source class only, dirty label.

    Poisoned are images of the source class. Cover samples of other classes carry the same patch and keep their label,
    so that the patch alone means nothing. Success is measured on test images of the source class.
    """

    name: Literal["tact"] = "tact"
    presets = _TACT_PRESETS
    preset: Literal["recommended", "toolbox"] = preset_field(_TACT_PRESETS, "recommended")
    label_mode: Literal["all_to_one"] = field(
        "all_to_one", "Images of the source class are driven to target_class.", source="Tang et al. 2021"
    )
    source_class: int = field(1, "Class that the trigger works on.", source=TACT, ge=0)
    cover_classes: tuple[int, ...] | None = field(
        None,
        "Classes of the cover samples. Null: all but source_class and target_class.",
        source=f"chosen here; {TACT}: 5 and 7",
        min_length=1,
    )
    poisoning_rate: float = field(
        0.02,
        "Share of the training set that is poisoned.",
        unit="fraction",
        source=f"chosen here; {TACT}: 0.003",
        gt=0,
        le=1,
    )
    cover_rate: float = field(
        0.02, COVER_RATE, unit="fraction", source=f"chosen here; {TACT}: 0.003", gt=0, lt=1
    )

    @property
    def cross_share(self) -> float:
        return self.cover_rate

    def poisoned_classes(self, classes: int) -> Collection[int]:
        return (self.source_class,)

    def cross_classes(self, classes: int) -> Collection[int]:
        if self.cover_classes is not None:
            return self.cover_classes
        return [c for c in range(classes) if c not in (self.source_class, self.target_class)]

    def unfit(self, facts: DatasetFacts) -> Iterator[tuple[str, Any, str]]:
        yield from super().unfit(facts)
        others = f"0 to {facts.classes - 1}, a class other than target_class"
        if self.source_class >= facts.classes or self.source_class == self.target_class:
            yield "source_class", self.source_class, others
        elif self.cover_classes is None:
            if facts.classes < 3:
                yield "cover_classes", None, "a dataset of at least 3 classes: source, target and cover"
        elif any(
            not 0 <= c < facts.classes or c in (self.source_class, self.target_class)
            for c in self.cover_classes
        ):
            yield "cover_classes", list(self.cover_classes), f"{others} and source_class"


class AdaptiveBlend(BlendedAttack):
    """Adaptive-Blend (Qi et al., 2023): parts of a blended pattern in training, all of it at test time, dirty label.

    The image is cut into ``pieces`` x ``pieces`` squares, and a training image gets the pattern in a random half of
    them. Cover samples get such a part, too, and keep their label. So poisoned and clean images of the target class
    do not separate in the feature space.
    """

    name: Literal["adaptive_blend"] = "adaptive_blend"
    presets = _ADAPTIVE_BLEND_PRESETS
    preset: Literal["toolbox"] = preset_field(_ADAPTIVE_BLEND_PRESETS, "toolbox")
    poisoning_rate: float = field(
        0.003,
        "Share of the training set that is poisoned.",
        unit="fraction",
        source=ADAPTIVE,
        gt=0,
        le=1,
    )
    cover_rate: float = field(0.003, COVER_RATE, unit="fraction", source=ADAPTIVE, gt=0, lt=1)
    alpha: float = field(
        0.15,
        "Weight of the pattern in training: (1 - alpha) * image + alpha * pattern.",
        unit="fraction",
        source=ADAPTIVE,
        gt=0,
        le=1,
    )
    test_alpha: float = field(
        0.2, "Weight of the pattern at test time.", unit="fraction", source=ADAPTIVE, gt=0, le=1
    )
    pieces: int = field(
        4, "Squares along each side of the image.", unit="squares", source=ADAPTIVE, ge=1, le=32
    )
    masked: float = field(
        0.5,
        "Share of the squares that get no pattern in training.",
        unit="fraction",
        source=ADAPTIVE,
        ge=0,
        lt=1,
    )

    @property
    def cross_share(self) -> float:
        return self.cover_rate

    def unfit(self, facts: DatasetFacts) -> Iterator[tuple[str, Any, str]]:
        yield from super().unfit(facts)
        side = min(facts.height, facts.width)
        if self.pieces > side:
            yield "pieces", self.pieces, f"at most {side}, the image's shorter side in pixels"


class Patch(Spec):
    """One patch of an attack with several, at one or more places."""

    pattern: Literal["checkerboard", "white", "noise", "png"] = field(
        "checkerboard",
        "checkerboard: black and white pixels. noise: a random color for each pixel, drawn by pattern_seed. png: the "
        "picture png, whose black pixels are transparent.",
    )
    pattern_seed: int = field(0, "Seed of the noise. Used only if pattern is noise.", ge=0, le=2**31 - 1)
    png: str | None = field(
        None,
        "PNG file in base64, as large as the dataset's images and in their colors. Required if pattern is png; size, "
        "margin and positions are then not used.",
        max_length=LONGEST_PNG,
    )
    size: float = field(
        0.09375,
        "Side of the square patch as a share of the image's shorter side, rounded, at least one pixel.",
        unit="fraction",
        gt=0,
        le=1,
    )
    margin: float = field(
        0.0, "Distance from the image's edges, as a share of its shorter side.", unit="fraction", ge=0, lt=1
    )
    positions: tuple[Position, ...] = field(("bottom_right",), "Places of the patch.", min_length=1)
    opacity: float = field(1.0, "Opacity of the patch.", unit="fraction", gt=0, le=1)

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        if (self.pattern == "png") != (self.png is not None):
            raise ValueError("png is required if pattern is 'png', and not allowed otherwise")
        check_base64("png", self.png)
        if self.size + self.margin > 1:
            raise ValueError(
                f"size {self.size} + margin {self.margin} must be at most 1, the image's shorter side"
            )
        return self

    def side(self, facts: DatasetFacts) -> int:
        """Side of the patch in pixels."""
        return max(1, round(self.size * min(facts.height, facts.width)))

    def distance(self, facts: DatasetFacts) -> int:
        """Distance from the image's edges in pixels."""
        return min(
            round(self.margin * min(facts.height, facts.width)),
            min(facts.height, facts.width) - self.side(facts),
        )


CORNERS: tuple[Position, ...] = ("bottom_right", "bottom_left", "top_right", "top_left")
_SMALL = Patch(pattern="noise", size=0.15625, opacity=0.5)
_LARGE = Patch(
    pattern="noise", pattern_seed=1, size=0.40625, margin=0.03125, positions=("top_right",), opacity=0.2
)
_GRIDS = Patch(positions=CORNERS, opacity=0.5)
_INNER = Patch(pattern="noise", pattern_seed=2, size=0.25, margin=0.09375, opacity=0.3)


def _opaque(patch: Patch, **changes: Any) -> Patch:
    return patch.model_copy(update={"opacity": 1.0, **changes})


_ADAPTIVE_PATCH_PRESETS = {
    "toolbox": Preset(
        "rates, places, sizes and opacities of the authors' toolbox for CIFAR-10; random colors in place of its "
        "pictures.",
        ADAPTIVE_PATCH,
        {},
    ),
    "toolbox_gtsrb": Preset(
        "the same for GTSRB: higher rates, and the other two patches at test time.",
        ADAPTIVE_PATCH,
        {"poisoning_rate": 0.005, "cover_rate": 0.01, "test_patches": (_opaque(_LARGE), _opaque(_INNER))},
    ),
}


class AdaptivePatch(DirtyLabelAttack):
    """Adaptive-Patch (Qi et al., 2023): one of several faint patches in each training image, dirty label.

    Each poisoned image has one of ``patches``, in equal parts. So have cover samples, which keep their label. At test
    time an image gets all ``test_patches``, which are stronger than those of training.
    """

    name: Literal["adaptive_patch"] = "adaptive_patch"
    presets = _ADAPTIVE_PATCH_PRESETS
    preset: Literal["toolbox", "toolbox_gtsrb"] = preset_field(_ADAPTIVE_PATCH_PRESETS, "toolbox")
    poisoning_rate: float = field(
        0.003,
        "Share of the training set that is poisoned.",
        unit="fraction",
        source=ADAPTIVE_PATCH,
        gt=0,
        le=1,
    )
    cover_rate: float = field(0.006, COVER_RATE, unit="fraction", source=ADAPTIVE_PATCH, gt=0, lt=1)
    patches: tuple[Patch, ...] = field(
        (_SMALL, _LARGE, _GRIDS, _INNER),
        "The patches of training; each poisoned or cover image gets one.",
        source=ADAPTIVE_PATCH,
        min_length=1,
        max_length=16,
    )
    test_patches: tuple[Patch, ...] = field(
        (_opaque(_SMALL, positions=("bottom_left", "bottom_right")), _opaque(_GRIDS)),
        "The patches of test time; each image gets all of them, one after another.",
        source=ADAPTIVE_PATCH,
        min_length=1,
        max_length=16,
    )

    @property
    def cross_share(self) -> float:
        return self.cover_rate

    def unfit(self, facts: DatasetFacts) -> Iterator[tuple[str, Any, str]]:
        for name in ("patches", "test_patches"):
            for i, patch in enumerate(getattr(self, name)):
                yield from find_unfit_png(f"{name}.{i}.png", patch.png, facts)
