"""A U-Net that maps images to images (Ronneberger et al. 2015), as the BTI-DBF authors' models/unet_model.py."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.specs.facts import DatasetFacts
from worker.lab.compute import seeded_global_generator
from worker.lab.networks import Network

WIDTH = 32  # channels of the first level, doubled at every further one
MOST_LEVELS = 4
MOST_CHANNELS = 512


class Block(nn.Sequential):
    """Two 3x3 convolutions, each with instance normalization and a leaky ReLU."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__(
            nn.Conv2d(given, made, 3, padding=1),
            nn.InstanceNorm2d(made, affine=True),
            nn.LeakyReLU(),
            nn.Conv2d(made, made, 3, padding=1),
            nn.InstanceNorm2d(made, affine=True),
            nn.LeakyReLU(),
        )


class TriggerGenerator(Network):
    """Float images ``[N, C, H, W]`` to such images; inside it works on images as the victim normalizes them.

    Four levels as in the source, fewer on images whose last level would be smaller than 2x2.
    """

    def __init__(self, channels: int, side: int) -> None:
        super().__init__(channels)
        levels = max(1, min(MOST_LEVELS, side.bit_length() - 2))
        widths = [min(WIDTH * 2**level, MOST_CHANNELS) for level in range(levels)]
        self.down = nn.ModuleList(Block(a, b) for a, b in zip([channels, *widths], widths, strict=False))
        self.bottom = Block(widths[-1], 2 * widths[-1])
        read = [2 * widths[-1], *widths[:0:-1]]
        self.enlarge = nn.ModuleList(
            nn.ConvTranspose2d(c, c, 3, stride=2, padding=1, output_padding=1) for c in read
        )
        self.up = nn.ModuleList(Block(a + b, b) for a, b in zip(read, widths[::-1], strict=True))
        self.last = nn.Conv2d(widths[0], channels, 1)

    @classmethod
    def for_victim(cls, victim: Network, facts: DatasetFacts, seed: int) -> "TriggerGenerator":
        """A new one with the victim's normalization, on its device."""
        with seeded_global_generator(victim.mean.device, "trigger generator", seed):
            generator = cls(facts.channels, min(facts.height, facts.width))
        generator.mean.copy_(victim.mean)
        generator.std.copy_(victim.std)
        return generator.to(victim.mean.device)

    def forward(self, x: Tensor) -> Tensor:
        x, skipped = self.normalize(x), []
        for block in self.down:
            x = block(x)
            skipped.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottom(x)
        for enlarge, block in zip(self.enlarge, self.up, strict=True):
            skip = skipped.pop()
            # Sides that are not divisible are rounded down on the way down.
            x = F.interpolate(F.leaky_relu(enlarge(x)), skip.shape[2:])
            x = block(torch.cat([x, skip], 1))
        images: Tensor = self.last(x) * self.std + self.mean
        return images
