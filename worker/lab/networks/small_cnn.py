"""A small plain network for CPUs."""

from torch import nn

from worker.lab.networks.base import Network


class SmallCnn(Network):
    """Three blocks of 3x3 convolution, batch normalization, ReLU; max-pooling after the first two."""

    def __init__(self, channels: int, classes: int, width: int = 16) -> None:
        super().__init__(channels)
        widths = [channels, width, 2 * width, 4 * width]
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(widths[i], widths[i + 1], 3, padding=1, bias=False),
                nn.BatchNorm2d(widths[i + 1]),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2) if i < 2 else nn.Identity(),
            )
            for i in range(3)
        )
        self.head = nn.Linear(widths[-1], classes)
