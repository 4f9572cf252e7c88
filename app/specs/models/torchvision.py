"""Torchvision's classification models by name."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, model_validator

from app.specs.base import field
from app.specs.models.architectures import ARCHITECTURES, Name
from app.specs.models.base import Architecture, Traits, reject_unknown

SMALL_IMAGE = 64
"""Side in pixels below which an ImageNet stem (stride 2, then pooling) loses most of an image."""
SMALL_PATCH = 4
"""Side of a vision transformer's patches on images below `SMALL_IMAGE`."""
MAX_VIT_STRIDES = {"original": 32, "small": 16}


def _refuse_unknown(name: Any) -> Any:
    reject_unknown(
        name, ARCHITECTURES, "torchvision has no such classification model; the catalog lists all of them"
    )
    return name


class Torchvision(Architecture):
    """A classification model of torchvision by its name, with random initial weights.

    The layers that most of them begin with reduce an image of 224 pixels to 56. With `stem: small` they reduce less, as
    usual on CIFAR-10: a 3x3 convolution without pooling in ResNet and its relatives, the first convolution without
    stride in mobile networks, smaller patches in ConvNeXt, Swin and ViT.
    """

    name: Literal["torchvision"] = "torchvision"
    architecture: Annotated[Name, BeforeValidator(_refuse_unknown)] = field(
        "resnet34", "Its name in torchvision.models.", source="chosen here"
    )
    stem: Literal["auto", "small", "original"] = field(
        "auto",
        f"First layers. small: adapted to small images, for architectures that have such a stem; original: as in "
        f"torchvision; auto: small below {SMALL_IMAGE} pixels if there is one.",
        source="chosen here",
    )
    patch_size: int | None = field(
        None,
        f"Side of the patches of a ViT, of which the image's side must be a multiple. Null: {SMALL_PATCH} with the "
        f"small stem, else as in the architecture's name.",
        unit="pixels",
        source="chosen here",
        ge=1,
        le=64,
    )

    @model_validator(mode="after")
    def _check_stem(self) -> Self:
        if self.stem == "small" and not ARCHITECTURES[self.architecture].stem:
            raise ValueError(
                f"stem 'small': {self.architecture} has no stem to adapt; allowed: auto, original"
            )
        if self.patch_size is not None and not self.is_vit:
            raise ValueError(
                f"patch_size {self.patch_size}: {self.architecture} has no patches to choose; allowed: null"
            )
        return self

    @property
    def is_vit(self) -> bool:
        return self.architecture.startswith("vit_")

    def has_small_stem(self, side: int) -> bool:
        """Whether it gets the stem for small images, of that shorter side in pixels."""
        has_stem = ARCHITECTURES[self.architecture].stem
        return self.stem == "small" or (self.stem == "auto" and has_stem and side < SMALL_IMAGE)

    def patch_side(self, side: int) -> int:
        """Side of a ViT's patches on images of that side."""
        original = int(self.architecture.rpartition("_")[2])
        return self.patch_size or (SMALL_PATCH if self.has_small_stem(side) else original)

    def traits(self, side: int) -> Traits:
        facts = ARCHITECTURES[self.architecture]
        small = self.has_small_stem(side)
        multiple = 1
        if self.is_vit:
            multiple = self.patch_side(side)
        elif self.architecture == "maxvit_t":
            multiple = MAX_VIT_STRIDES["small" if small else "original"]
        fixed = multiple > 1 or self.is_vit
        least = multiple if fixed else facts.least_small if small else facts.least_original
        return Traits(facts.batch_norm, facts.spatial_maps, least, multiple, square=fixed)
