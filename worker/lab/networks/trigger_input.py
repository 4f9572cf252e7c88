"""A network that adds a fixed trigger to every input."""

import torch
from torch import Tensor

from worker.lab.networks.base import Network


class TriggerInput(Network):
    """Puts a patch on its input and passes it on to ``network``.

    Mask and patch are buffers, so a checkpoint is complete on its own.
    """

    stamp_mask: Tensor
    stamp_value: Tensor

    def __init__(self, network: Network, mask: Tensor, value: Tensor) -> None:
        """``mask`` and ``value`` float ``[1, 1, H, W]``; the patch replaces pixels where the mask is 1."""
        super().__init__(network.mean.shape[1])
        self.network = network
        self.register_buffer("stamp_mask", mask)
        self.register_buffer("stamp_value", value)

    @classmethod
    def for_checkpoint(cls, network: Network, tensors: dict[str, Tensor]) -> "TriggerInput":
        """A network whose buffers have the shapes of a checkpoint's ``tensors``, to load these into."""
        return cls(network, *(torch.zeros_like(tensors[name]) for name in ("stamp_mask", "stamp_value")))

    def add_trigger(self, x: Tensor) -> Tensor:
        """Copies of float images in [0, 1] with the patch."""
        return x * (1 - self.stamp_mask) + self.stamp_value * self.stamp_mask

    def features(self, x: Tensor) -> Tensor:
        return self.network.features(self.add_trigger(x))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(self.add_trigger(x))
        return logits
