"""The generator network of the input-aware attack: encoder and decoder without skip connections."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (32, 64, 128)
WIDTHS_SMALL = (16, 32)
"""For images below 32 pixels, as the authors' code does on MNIST."""


def _convolution(before: int, after: int, *, relu: bool = True) -> nn.Sequential:
    # Conv2dBlock of networks/blocks.py:5-17 in the authors' code.
    layers: list[nn.Module] = [
        nn.Conv2d(before, after, 3, padding=1),
        nn.BatchNorm2d(after, momentum=0.05),
    ]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if relu else nn.Sequential(*layers)


class EncoderDecoder(nn.Module):
    """Images in [0, 1] to ``outputs`` channels in (0, 1) of the same size (networks/models.py:41-112 of
    VinAIResearch/input-aware-backdoor-attack-release).

    Pairs of 3x3 convolutions of growing width, each pair followed by max-pooling; one in the middle; then bilinear
    up-sampling back to the size of each level. The last convolution has no ReLU; the output is ``tanh / 2 + 1/2``.
    """

    def __init__(self, channels: int, outputs: int, side: int) -> None:
        super().__init__()
        widths = WIDTHS if side >= 32 else WIDTHS_SMALL
        ins, outs = (channels, *widths[:-1]), (*reversed(widths[:-1]), outputs)
        self.down = nn.ModuleList(
            nn.Sequential(_convolution(a, b), _convolution(b, b)) for a, b in zip(ins, widths, strict=True)
        )
        self.middle = _convolution(widths[-1], widths[-1])
        self.up = nn.ModuleList(
            nn.Sequential(_convolution(a, a), _convolution(a, b, relu=i < len(outs) - 1))
            for i, (a, b) in enumerate(zip(reversed(widths), outs, strict=True))
        )

    def forward(self, x: Tensor) -> Tensor:
        x, sizes = x * 2 - 1, []
        for block in self.down:
            x = block(x)
            sizes.append(x.shape[-2:])
            x = F.max_pool2d(x, 2, ceil_mode=True)
        x = self.middle(x)
        for block, size in zip(self.up, reversed(sizes), strict=True):
            x = block(F.interpolate(x, size, mode="bilinear", align_corners=False))
        return torch.tanh(x) / 2 + 0.5
