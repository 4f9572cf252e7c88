"""Pre-activation ResNet-18."""

import torch.nn.functional as F
from torch import Tensor, nn

from worker.lab.networks.base import Network


class PreActBlock(nn.Module):
    """BN-ReLU-conv twice, plus the input; where the shape changes, a projection of the pre-activation (figure 4e)."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        same = stride == 1 and width_in == width
        self.project = None if same else nn.Conv2d(width_in, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        skip = x if self.project is None else self.project(active)
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active)))) + skip
        return out


def make_stage(width_in: int, width: int, blocks: int, stride: int) -> list[nn.Module]:
    """``blocks`` blocks; the first one changes width and resolution."""
    return [PreActBlock(width_in if i == 0 else width, width, stride if i == 0 else 1) for i in range(blocks)]


class PreActResNet18(Network):
    """Four stages of two pre-activation blocks, 64 to 512 channels, a 3x3 stem, and BN-ReLU at the end."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels)
        stem = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList(
            [
                nn.Sequential(stem, *make_stage(64, 64, 2, 1)),
                nn.Sequential(*make_stage(64, 128, 2, 2)),
                nn.Sequential(*make_stage(128, 256, 2, 2)),
                nn.Sequential(*make_stage(256, 512, 2, 2), nn.BatchNorm2d(512), nn.ReLU(inplace=True)),
            ]
        )
        self.head = nn.Linear(512, classes)
