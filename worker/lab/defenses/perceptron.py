"""Small fully connected networks, as plain tensors: some methods train one beside the victim's architecture."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


def make_layers(sizes: Sequence[int], generator: torch.Generator) -> list[Tensor]:
    """Weight and bias of every layer in turn, with torch's own initial values for linear layers.

    ``sizes`` are the numbers of units, from the inputs to the outputs.
    """
    layers = []
    for inputs, outputs in pairwise(sizes):
        bound = inputs**-0.5
        for shape in ((outputs, inputs), (outputs,)):
            value = 2 * bound * torch.rand(*shape, device=generator.device, generator=generator) - bound
            layers.append(value.requires_grad_())
    return layers


def apply_layers(layers: Sequence[Tensor], x: Tensor) -> Tensor:
    """Sigmoid of the only output ``[n]`` for ``[n, inputs]``, with rectifiers between the layers."""
    *hidden, last = zip(layers[::2], layers[1::2], strict=True)
    for weight, bias in hidden:
        x = F.linear(x, weight, bias).relu()
    return F.linear(x, *last).sigmoid()[:, 0]
