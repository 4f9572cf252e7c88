"""ResNet-18 from torchvision, with the usual CIFAR stem for small images."""

from torch import nn

from worker.lab.networks._torchvision import torchvision_models
from worker.lab.networks.base import Network

SMALL_IMAGE = (
    64  # side in pixels below which the ImageNet stem (stride 2, then pooling) loses most of the image
)


class ResNet18(Network):
    """He et al. 2016: four stages of two basic blocks, 64 to 512 channels.

    Images below 64 px get a 3x3 stem of stride 1 without pooling, as usual on CIFAR-10.
    """

    def __init__(self, channels: int, classes: int, side: int) -> None:
        super().__init__(channels)
        net = torchvision_models().resnet18(num_classes=classes)
        stem: list[nn.Module]
        if side < SMALL_IMAGE:
            stem = [nn.Conv2d(channels, 64, 3, padding=1, bias=False), net.bn1, net.relu]
            nn.init.kaiming_normal_(stem[0].weight, mode="fan_out", nonlinearity="relu")  # type: ignore[arg-type]
        else:
            conv = net.conv1 if channels == 3 else nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
            stem = [conv, net.bn1, net.relu, net.maxpool]
        self.blocks = nn.ModuleList([nn.Sequential(*stem, net.layer1), net.layer2, net.layer3, net.layer4])
        self.head = net.fc
