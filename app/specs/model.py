"""Network architectures by name."""

from typing import Annotated, Literal

from pydantic import Field

from app.specs.base import Spec, field

OWN = "chosen here"


BLOCKS_FROM = 32
"""Side of an image in pixels from which `small_cnn` has five blocks: fewer do not see a whole image."""


class SmallCnn(Spec):
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


class ResNet18(Spec):
    """ResNet-18 (He et al., 2016) from torchvision. Images below 64 pixels get the CIFAR stem (3x3, no pooling)."""

    name: Literal["resnet18"] = "resnet18"


class PreActResNet18(Spec):
    """Pre-activation ResNet-18 (He et al., 2016b), the usual victim in backdoor benchmarks."""

    name: Literal["preact_resnet18"] = "preact_resnet18"
    final_norm: bool = field(
        False,
        "End in batch normalization and ReLU, as in the paper. false: pool the last block's sum, as BackdoorBench.",
        source="BackdoorBench, models/preact_resnet.py",
    )


class WideResNet16x1(Spec):
    """WRN-16-1 (Zagoruyko and Komodakis, 2016), the network of the ABL paper, with 0.17 M parameters."""

    name: Literal["wide_resnet_16_1"] = "wide_resnet_16_1"


ModelSpec = Annotated[SmallCnn | ResNet18 | PreActResNet18 | WideResNet16x1, Field(discriminator="name")]
