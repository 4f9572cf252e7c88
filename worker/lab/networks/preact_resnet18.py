"""Pre-activation ResNet-18."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from worker.lab.networks.base import Network


class PreActBlock(nn.Module):
    """BN-ReLU-conv twice, plus the input; where the shape changes, a projection of the pre-activation
    (He et al. 2016b, figure 4e). ``projection`` is the name of that layer: the benchmark's or the ABL authors'."""

    def __init__(
        self, width_in: int, width: int, stride: int, projection: Literal["shortcut", "convShortcut"]
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.projection = None if stride == 1 and width_in == width else projection
        if self.projection:
            layer = nn.Conv2d(width_in, width, 1, stride, bias=False)
            # The benchmark has the layer alone in a list.
            self.add_module(projection, nn.Sequential(layer) if projection == "shortcut" else layer)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        skip = self.get_submodule(self.projection)(active) if self.projection else x
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active)))) + skip
        return out


class PreActResNet18(Network):
    """Four stages of two pre-activation blocks, 64 to 512 channels, and a 3x3 stem.

    Layers have the names of the public benchmark (BackdoorBench, models/preact_resnet.py), which pools the last block's
    sum directly. He et al. 2016b end in batch normalization and ReLU; ``final_norm`` adds them.
    """

    def __init__(self, channels: int, classes: int, final_norm: bool) -> None:
        super().__init__(channels)
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.layer1 = _make_layer(64, 64, 1)
        self.layer2 = _make_layer(64, 128, 2)
        self.layer3 = _make_layer(128, 256, 2)
        self.layer4 = _make_layer(256, 512, 2)
        self.bn = nn.BatchNorm2d(512) if final_norm else None
        self.linear = nn.Linear(512, classes)

    @property
    def head(self) -> nn.Linear:  # type: ignore[override]  # the benchmark names the layer
        return self.linear

    def stage_maps(self, x: Tensor) -> list[Tensor]:
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        return self.outputs_of(self.conv1(self.normalize(x)), stages)

    def apply_final_norm(self, last: Tensor) -> Tensor:
        return last if self.bn is None else F.relu(self.bn(last))


def _make_layer(width_in: int, width: int, stride: int) -> nn.Sequential:
    """Two blocks; the first one changes width and resolution."""
    first = PreActBlock(width_in, width, stride, "shortcut")
    return nn.Sequential(first, PreActBlock(width, width, 1, "shortcut"))
