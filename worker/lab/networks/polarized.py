"""A network with a small layer inside that purifies features."""

from torch import Tensor, nn

from worker.lab.networks.base import Network

KERNEL = "polarizer.0.weight"
"""The tensor by which a checkpoint of such a network is recognized."""


class PolarizedNetwork(Network):
    """``network`` with a 1x1 convolution and a batch normalization before the second last of its convolutions.

    The layer is the identity at first. It is put there by a hook, so ``network`` itself is not changed otherwise.
    """

    def __init__(self, network: Network) -> None:
        super().__init__(network.mean.shape[1])
        self.network = network
        convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
        target = convolutions[max(-2, -len(convolutions))]
        channels = target.in_channels
        self.polarizer = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        nn.init.dirac_(self.polarizer[0].weight)  # type: ignore[arg-type]  # a parameter
        target.register_forward_pre_hook(self._polarize)

    def _polarize(self, layer: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (self.polarizer(given[0]),)

    def features(self, x: Tensor) -> Tensor:
        return self.network.features(x)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits
