"""A network that stamps whatever it is asked."""

import torch
from torch import Tensor

from worker.lab.networks.base import Network


class Stamped(Network):
    """Puts a patch on its input, then asks ``network``. Mask and patch are buffers, so a checkpoint has them."""

    stamp_mask: Tensor
    stamp_value: Tensor

    def __init__(self, network: Network, mask: Tensor, value: Tensor) -> None:
        """``mask`` and ``value`` float ``[1, 1, H, W]``; the patch replaces pixels where the mask is 1."""
        super().__init__(network.mean.shape[1])
        self.network = network
        self.register_buffer("stamp_mask", mask)
        self.register_buffer("stamp_value", value)

    @classmethod
    def around(cls, network: Network, tensors: dict[str, Tensor]) -> "Stamped":
        """An empty one to load a checkpoint's ``tensors`` into."""
        return cls(network, *(torch.zeros_like(tensors[name]) for name in ("stamp_mask", "stamp_value")))

    def stamp(self, x: Tensor) -> Tensor:
        """Stamped copies of float images in [0, 1]."""
        return x * (1 - self.stamp_mask) + self.stamp_value * self.stamp_mask

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        return self.network.feature_maps(self.stamp(x))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(self.stamp(x))
        return logits
