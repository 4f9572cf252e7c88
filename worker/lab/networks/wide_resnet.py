"""WRN-16-1, the victim of the ABL paper."""

from torch import nn

from worker.lab.networks.base import Network
from worker.lab.networks.preact_resnet18 import make_stage


class WideResNet16x1(Network):
    """Zagoruyko and Komodakis 2016 with depth 16 and widening 1: three stages of two blocks, 16, 32, 64 channels."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels)
        stem = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList(
            [
                nn.Sequential(stem, *make_stage(16, 16, 2, 1)),
                nn.Sequential(*make_stage(16, 32, 2, 2)),
                nn.Sequential(*make_stage(32, 64, 2, 2), nn.BatchNorm2d(64), nn.ReLU(inplace=True)),
            ]
        )
        self.head = nn.Linear(64, classes)
