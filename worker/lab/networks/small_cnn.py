"""A small plain network for CPUs."""

from torch import Tensor, nn

from worker.lab.networks.base import Network


class SmallCnn(Network):
    """Blocks of 3x3 convolution, batch normalization and ReLU, with max-pooling between them.

    With five blocks every position of the last map sees a whole image of 32 pixels, which triggers whose target depends
    on the image's class require.
    """

    def __init__(self, channels: int, classes: int, width: int, blocks: int) -> None:
        super().__init__(channels)
        widths = [channels, width, 2 * width] + [4 * width] * (blocks - 2)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(widths[i], widths[i + 1], 3, padding=1, bias=False),
                nn.BatchNorm2d(widths[i + 1]),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2) if i < blocks - 1 else nn.Identity(),
            )
            for i in range(blocks)
        )
        self.head = nn.Linear(widths[-1], classes)

    def stage_maps(self, x: Tensor) -> list[Tensor]:
        return self.outputs_of(self.normalize(x), self.blocks)
