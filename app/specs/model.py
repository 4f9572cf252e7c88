"""Network architectures by name."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import Field

from app.specs.base import field
from app.specs.models.base import Architecture, Traits
from app.specs.models.timm import Timm
from app.specs.models.torchvision import SMALL_IMAGE, Torchvision
from app.specs.plugins import with_plugins

__all__ = ["ModelSpec", "PreActResNet18", "ResNet18", "SmallCnn", "Timm", "Torchvision", "WideResNet16x1"]

OWN = "chosen here"


BLOCKS_FROM = 32
"""Side of an image in pixels from which `small_cnn` has five blocks: fewer do not see a whole image."""


class SmallCnn(Architecture):
    """3x3 convolutions with batch normalization, five on images of 32 pixels and more, and one linear layer.

    Made for CPUs, where ResNet-18 takes far longer. On larger images two more convolutions let it see a whole image,
    which triggers whose target depends on the image's class require.
    """

    name: Literal["small_cnn"] = "small_cnn"
    width: int = field(
        16,
        "Channels of the first convolution; the second has twice, the others four times as many.",
        unit="channels",
        source=OWN,
        ge=4,
        le=256,
    )
    blocks: Literal[3, 5] | None = field(
        None,
        f"Number of convolutions. Null: 5 on images of {BLOCKS_FROM} pixels and more, 3 on smaller ones.",
        source=OWN,
        added_later=True,
    )

    def blocks_for(self, side: int) -> int:
        """Number of convolutions on images whose shorter side has ``side`` pixels."""
        return self.blocks or (5 if side >= BLOCKS_FROM else 3)

    def traits(self, side: int) -> Traits:
        # Every block but the last one halves the image.
        return Traits(least_side=2 ** (self.blocks_for(side) - 1))


class ResNet18(Architecture):
    """ResNet-18 (He et al., 2016) from torchvision. Small images get the CIFAR stem."""

    name: Literal["resnet18"] = "resnet18"
    stem: Literal["small", "original"] | None = field(
        None,
        f"First layers. small: a 3x3 convolution without pooling; original: 7x7, stride 2, and pooling. Null: small on "
        f"images below {SMALL_IMAGE} pixels, or as an uploaded checkpoint has it.",
        source=OWN,
        added_later=True,
    )


class PreActResNet18(Architecture):
    """Pre-activation ResNet-18 (He et al., 2016b), the usual victim in backdoor benchmarks."""

    name: Literal["preact_resnet18"] = "preact_resnet18"
    final_norm: bool = field(
        False,
        "End in batch normalization and ReLU, as in the paper. false: pool the last block's sum, as BackdoorBench.",
        source="BackdoorBench, models/preact_resnet.py",
    )


class WideResNet16x1(Architecture):
    """WRN-16-1 (Zagoruyko and Komodakis, 2016), the network of the ABL paper, with 0.17 M parameters."""

    name: Literal["wide_resnet_16_1"] = "wide_resnet_16_1"


_BUILT_IN = SmallCnn | ResNet18 | PreActResNet18 | WideResNet16x1 | Torchvision | Timm
if TYPE_CHECKING:
    ModelSpec = _BUILT_IN
else:
    ModelSpec = Annotated[with_plugins(_BUILT_IN, Architecture), Field(discriminator="name")]


def plugin_architectures() -> list[type[Architecture]]:
    """The classes that plug-ins define."""
    union: Any = ModelSpec if TYPE_CHECKING else get_args(ModelSpec)[0]
    return [cls for cls in get_args(union) if cls.code]
