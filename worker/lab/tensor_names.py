"""Several sets of named tensors in one dictionary, distinguished by a prefix of their names."""

from collections.abc import Mapping

import torch
from torch import Tensor


def add_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, with ``prefix`` before their names."""
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def select_prefixed(
    tensors: Mapping[str, Tensor], prefix: str, device: torch.device | None = None
) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it, moved to ``device`` if one is given."""
    return {
        name.removeprefix(prefix): tensor if device is None else tensor.to(device)
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
