"""Tensors as the bytes of a safetensors file: equal tensors and labels give equal bytes."""

import json
import math
import warnings
from collections.abc import Mapping
from typing import BinaryIO

import torch
from safetensors.torch import save
from torch import Tensor

LENGTH_BYTES = 8
"""A file begins with the length of its JSON header, little-endian, a multiple of this."""
LARGE = 2**26
"""Bytes from which images that are read stay a part of what they were read from."""
_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


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


def write_tensors(file: BinaryIO, tensors: Mapping[str, Tensor]) -> None:
    """Write the bytes of a safetensors file, one tensor after the other: its own writer copies all of them first."""
    kinds = {dtype: kind for kind, dtype in _TYPES.items()}
    ordered = sorted(
        tensors.items(), key=lambda item: (-item[1].itemsize, item[0])
    )  # so that all are aligned
    entries, end = {}, 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        shape = list(tensor.shape)
        entries[name] = {"dtype": kinds[tensor.dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    file.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
    for _, tensor in ordered:
        file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def read_tensors(data: bytes, start: int) -> dict[str, Tensor]:
    """The tensors of a safetensors file that begins at ``start`` of ``data``.

    One of uint8 with `LARGE` bytes or more must not be written to: it is a part of ``data``, and no copy.
    """
    begin = start + LENGTH_BYTES
    begin += int.from_bytes(data[start:begin], "little")
    entries = json.loads(data[start + LENGTH_BYTES : begin])
    tensors = {}
    for name, entry in entries.items():
        dtype, shape = _TYPES[entry["dtype"]], entry["shape"]
        if not math.prod(shape):
            tensors[name] = torch.empty(shape, dtype=dtype)
            continue
        first, end = (begin + offset for offset in entry["data_offsets"])
        if dtype == torch.uint8 and end - first >= LARGE:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The given buffer is not writable")
                flat = torch.frombuffer(data, dtype=dtype, count=end - first, offset=first)
        else:
            flat = torch.frombuffer(bytearray(data[first:end]), dtype=dtype)
        tensors[name] = flat.view(shape)
    return tensors
