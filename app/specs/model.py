"""Network architectures by name."""

from typing import Annotated, Literal

from pydantic import Field

from app.specs.base import Spec, field


class SmallCnn(Spec):
    """Three 3x3 convolutions with batch normalization, each twice as wide as the last, and one linear layer.

    Made for CPUs: about twenty times faster than ResNet-18 on 32x32 images, and accurate enough for every attack.
    """

    name: Literal["small_cnn"] = "small_cnn"
    width: int = field(
        16,
        "Channels of the first convolution; the other two have two and four times as many.",
        unit="channels",
        ge=4,
        le=256,
    )


class ResNet18(Spec):
    """ResNet-18 (He et al., 2016) from torchvision. Images below 64 pixels get the CIFAR stem (3x3, no pooling)."""

    name: Literal["resnet18"] = "resnet18"


class PreActResNet18(Spec):
    """Pre-activation ResNet-18 (He et al., 2016b), the usual victim in backdoor benchmarks."""

    name: Literal["preact_resnet18"] = "preact_resnet18"


class WideResNet16x1(Spec):
    """WRN-16-1 (Zagoruyko and Komodakis, 2016), the network of the ABL paper, with 0.17 M parameters."""

    name: Literal["wide_resnet_16_1"] = "wide_resnet_16_1"


ModelSpec = Annotated[SmallCnn | ResNet18 | PreActResNet18 | WideResNet16x1, Field(discriminator="name")]
