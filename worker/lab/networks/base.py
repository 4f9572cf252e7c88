"""The interface of victim networks, so that defenses do not depend on an architecture."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from worker.lab.data.streamed import Images, count_levels


class Network(nn.Module):
    """A classifier of float images in [0, 1], ``[N, C, H, W]``, that normalizes its input itself.

    Subclasses define `stage_maps` and ``head``, a linear layer on the pooled last feature map. Their layers have
    the names that published checkpoints use. Mean and standard deviation of the training pixels are buffers, so a
    checkpoint is complete on its own.
    """

    mean: Tensor
    std: Tensor
    head: nn.Linear
    """The last layer. An attribute or a property."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))

    def calibrate(self, images: Images) -> None:
        """Set mean and deviation of each channel from uint8 ``[N, C, H, W]``; a constant channel gets deviation 1."""
        levels = torch.arange(256, dtype=torch.float64) / 255
        # From the histogram: exact, and without a float copy of the dataset.
        for channel, counts in enumerate(count_levels(images)):
            share = counts.double()
            share /= share.sum()
            mean = (share * levels).sum()
            std = (share * (levels - mean) ** 2).sum().sqrt()
            self.mean[:, channel] = mean
            self.std[:, channel] = std if std > 1e-3 else 1.0

    def normalize(self, x: Tensor) -> Tensor:
        """Images with mean 0 and deviation 1 in every channel."""
        return (x - self.mean) / self.std

    def stage_maps(self, x: Tensor) -> list[Tensor]:
        """Output of every stage, ``[N, channels, height, width]``, first to last. Subclasses define it."""
        raise NotImplementedError

    def apply_final_norm(self, last: Tensor) -> Tensor:
        """The last feature map, from the last stage's output; differs only where a normalization follows."""
        return last

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """`stage_maps`, the last one after the final normalization, if there is one."""
        *maps, last = self.stage_maps(x)
        return [*maps, self.apply_final_norm(last)]

    def outputs_of(self, x: Tensor, stages: Iterable[nn.Module]) -> list[Tensor]:
        """The outputs of ``stages``, each of which gets the output of the one before; the first gets ``x``."""
        maps = []
        for stage in stages:
            x = stage(x)
            maps.append(x)
        return maps

    def features(self, x: Tensor) -> Tensor:
        """The pooled last feature map ``[N, D]``, the head's input."""
        return self.feature_maps(x)[-1].mean((2, 3))

    @property
    def prunable_layer(self) -> nn.Module:
        """The layer that reads the last feature map's channels."""
        return self.head

    @property
    def prunable_weight(self) -> Tensor:
        """The weight ``[outputs, channels, ...]`` of the layer that reads the last feature map's channels.

        A channel is pruned by setting its part of it to zero, which equals zeroing what the channel passes on.
        """
        return self.head.weight

    def prunable_activity(self, x: Tensor) -> Tensor:
        """What the layer of `prunable_weight` reads of each channel ``[N, channels]``, averaged over positions."""
        return self.features(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, classes]``."""
        logits: Tensor = self.head(self.features(x))
        return logits

    def logits_and_maps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The logits and the `stage_maps` that they are computed from, in one pass."""
        maps = self.stage_maps(x)
        logits: Tensor = self.head(self.apply_final_norm(maps[-1]).mean((2, 3)))
        return logits, maps
