"""Tensors as the bytes of a safetensors file: equal tensors and labels give equal bytes."""

import json
from collections.abc import Mapping

from safetensors.torch import save
from torch import Tensor

LENGTH_BYTES = 8
"""A file begins with the length of its JSON header, little-endian, a multiple of this."""


def dump_tensors(tensors: Mapping[str, Tensor], labels: Mapping[str, str]) -> bytes:
    """The file of ``tensors``, from any device, with ``labels`` in its header.

    `safetensors` sorts tensors by type and name, but writes labels in an order that differs between two calls.
    """
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    start = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
    header = {"__metadata__": dict(sorted(labels.items())), **json.loads(data[LENGTH_BYTES:start])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)  # the tensors stay aligned
    return b"".join((len(text).to_bytes(LENGTH_BYTES, "little"), text, memoryview(data)[start:]))
