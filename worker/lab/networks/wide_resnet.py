"""WRN-16-1, the victim of the ABL paper."""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from worker.lab.networks.base import Network
from worker.lab.networks.preact_resnet18 import PreActBlock


class WideResNet16x1(Network):
    """Zagoruyko and Komodakis 2016 with depth 16 and widening 1: three stages of two blocks, 16, 32, 64 channels.

    Layers have the names and initial weights of the ABL authors' code (models/wresnet.py).
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels)
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.block1 = _make_block(16, 16, 1)
        self.block2 = _make_block(16, 32, 2)
        self.block3 = _make_block(32, 64, 2)
        self.bn1 = nn.BatchNorm2d(64)
        self.fc = nn.Linear(64, classes)
        nn.init.zeros_(self.fc.bias)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):  # normal, with variance 2 / (kernel area * output channels)
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    @property
    def head(self) -> nn.Linear:  # type: ignore[override]  # the authors name the layer
        return self.fc

    def stage_maps(self, x: Tensor) -> list[Tensor]:
        return self.outputs_of(self.conv1(self.normalize(x)), (self.block1, self.block2, self.block3))

    def apply_final_norm(self, last: Tensor) -> Tensor:
        return F.relu(self.bn1(last))


def _make_block(width_in: int, width: int, stride: int) -> nn.Sequential:
    """Two blocks; the first one changes width and resolution. The authors name the list of both ``layer``."""
    first = PreActBlock(width_in, width, stride, "convShortcut")
    layer = nn.Sequential(first, PreActBlock(width, width, 1, "convShortcut"))
    return nn.Sequential(OrderedDict(layer=layer))
