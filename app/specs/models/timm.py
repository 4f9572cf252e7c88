"""timm's image models by name. timm is an extra: not every worker has it."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, model_validator

from app.specs.base import field
from app.specs.models.base import Architecture, Traits, reject_unknown
from app.specs.models.timm_architectures import ARCHITECTURES, Facts
from app.specs.models.torchvision import SMALL_IMAGE, SMALL_PATCH

PATCHED = ("vit_", "deit_", "deit3_")
"""Beginnings of the names of vision transformers, whose patches can have any size."""


def _refuse_unknown(name: Any) -> Any:
    bare = name.partition(".")[0] if isinstance(name, str) else name
    reject_unknown(
        bare, ARCHITECTURES, f"not one of the {len(ARCHITECTURES)} models of timm that can be victims"
    )
    return name


class Timm(Architecture):
    """Any image model of timm (Wightman, 2019), with random initial weights. The workers need the extra `timm`.

    With `stem: small` the first layers reduce an image less: no pooling and a first convolution of stride 1, of 3x3 if
    it is larger; patches of half the side in ConvNeXt and its relatives, of 4 pixels in ViT and DeiT.
    """

    extra: ClassVar[str] = "timm"

    name: Literal["timm"] = "timm"
    architecture: Annotated[str, BeforeValidator(_refuse_unknown)] = field(
        "resnet18",
        "Its name in timm.list_models(). A tag, as in resnet18.a1_in1k, names published weights; they are not "
        "downloaded: upload them as a checkpoint.",
        source="chosen here",
        pattern=r"^[a-z0-9_]+(\.[a-z0-9_]+)?$",
    )
    stem: Literal["auto", "small", "original"] = field(
        "auto",
        f"First layers. small: adapted to small images; original: as in timm; auto: small below {SMALL_IMAGE} pixels.",
        source="chosen here",
    )
    patch_size: int | None = field(
        None,
        f"Side of the patches of a ViT or DeiT, of which the image's side must be a multiple. Null: {SMALL_PATCH} with "
        f"the small stem, else as in timm.",
        unit="pixels",
        source="chosen here",
        ge=1,
        le=64,
    )

    @model_validator(mode="after")
    def _check_patches(self) -> Self:
        if self.patch_size is not None and not self.has_patches:
            raise ValueError(
                f"patch_size {self.patch_size}: {self.architecture} has no patches to choose; allowed: null"
            )
        return self

    @property
    def facts(self) -> Facts:
        return ARCHITECTURES[self.architecture.partition(".")[0]]

    @property
    def has_patches(self) -> bool:
        return self.architecture.startswith(PATCHED) and self.facts.fixed_size

    def has_small_stem(self, side: int) -> bool:
        """Whether it gets the stem for small images, of that shorter side in pixels."""
        return self.stem == "small" or (self.stem == "auto" and side < SMALL_IMAGE)

    def patch_side(self, side: int) -> int | None:
        """Side of the patches on images of that side; None: that of timm."""
        if not self.has_patches:
            return None
        return self.patch_size or (SMALL_PATCH if self.has_small_stem(side) else None)

    def traits(self, side: int) -> Traits:
        facts, multiple = self.facts, self.patch_side(side) or 1
        return Traits(facts.batch_norm, facts.spatial_maps, multiple, multiple, square=facts.fixed_size)
