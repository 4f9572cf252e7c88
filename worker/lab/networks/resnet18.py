"""ResNet-18 from torchvision, with the usual CIFAR stem for small images."""

from torch import Tensor, nn

from worker.lab.networks._torchvision import torchvision_models
from worker.lab.networks.base import Network


class ResNet18(Network):
    """He et al. 2016: four stages of two basic blocks, 64 to 512 channels. Layers have torchvision's names.

    ``small``: a 3x3 stem of stride 1 without pooling, as usual on CIFAR-10.
    """

    def __init__(self, channels: int, classes: int, small: bool) -> None:
        super().__init__(channels)
        net = torchvision_models().resnet18(num_classes=classes)
        self.small = small
        if self.small:
            self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        elif channels == 3:
            self.conv1 = net.conv1
        else:
            self.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1, self.relu, self.maxpool = net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        self.fc: nn.Linear = net.fc

    @property
    def head(self) -> nn.Linear:  # type: ignore[override]  # torchvision names the layer
        return self.fc

    def stage_maps(self, x: Tensor) -> list[Tensor]:
        x = self.relu(self.bn1(self.conv1(self.normalize(x))))
        x = x if self.small else self.maxpool(x)
        return self.outputs_of(x, (self.layer1, self.layer2, self.layer3, self.layer4))
