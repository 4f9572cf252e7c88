"""A model that the user brings: a safetensors file, looked at closely before any of it is loaded.

The header is read first. Every name, shape and type in it must be those of the architecture, so what is loaded is
never larger than the architecture; and nothing is ever unpickled.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from app.specs.experiment import ExperimentSpec
from app.specs.facts import Shape
from app.specs.model import ModelSpec
from worker.lab.contracts import LabError
from worker.lab.networks import Network, build
from worker.lab.networks.stamped import Stamped

LENGTH_BYTES = 8
LONGEST_HEADER = 1_000_000
NAMED = 3  # tensors that a message names at most
SMALL = 32  # pixels a side of the images that a model is tried on
_TYPES = {torch.float32: ("F32", 4), torch.int64: ("I64", 8)}
"""The types that our networks have, as safetensors calls them, and their sizes in bytes."""
_FOREIGN = {b"PK\x03\x04": "a zip, as torch.save writes it", b"\x80": "a pickle", b"\x89HDF": "an HDF5 file"}


class BadModelError(LabError):
    """A file that cannot be used as a model; the message says why."""


@dataclass(frozen=True)
class Brought:
    """A model that was found to be sound. ``sha256`` is that of its file."""

    tensors: dict[str, Tensor]
    sha256: str

    @property
    def stamped(self) -> bool:
        """True if the model stamps whatever it is asked, as the defense `nab` leaves it."""
        return "stamp_mask" in self.tensors


@dataclass(frozen=True)
class Header:
    """``tensors``: name to (type, shape, begin, end); ``labels``: the text that the file's writer put beside them."""

    tensors: dict[str, tuple[str, tuple[int, ...], int, int]]
    labels: dict[str, str]
    data_bytes: int


def read(path: Path, model: ModelSpec, shape: Shape) -> Brought:
    """Load the file at ``path`` as a ``model`` for images of that ``shape``, on the CPU. Raises BadModelError."""
    header = read_header(path)
    network = empty(model, shape, "stamp_mask" in header.tensors)
    compare(header, network.state_dict(), model.name)
    try:
        tensors = load_file(path)
        network.load_state_dict(tensors)
    except (SafetensorError, RuntimeError) as error:  # a header that two readers understand in two ways
        raise BadModelError(f"the file cannot be loaded: {str(error)[:200]}") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise BadModelError(f"tensor {name!r} holds NaN or infinity")
    # Zero deviations and negative variances are finite, and what comes of them is not. Small images show it as well as
    # large ones, which would need memory that no file pays for; a stamp is for images of the full size.
    inner = network.network if isinstance(network, Stamped) else network
    sides = min(shape.height, SMALL), min(shape.width, SMALL)
    with torch.inference_mode():
        answer = inner.eval()(torch.rand(2, shape.channels, *sides, generator=_generator()))
    if not torch.isfinite(answer).all():
        raise BadModelError("the model's answer to random images is not finite")
    return Brought(tensors, digest(path))


def empty(model: ModelSpec, shape: Shape, stamped: bool) -> Network:
    """A network to load a checkpoint into."""
    network = build(model, shape, "load")
    if not stamped:
        return network
    blank = torch.zeros(1, 1, shape.height, shape.width)
    return Stamped(network, blank, blank.clone())


def read_header(path: Path) -> Header:
    """The header of the safetensors file at ``path``, every claim in it checked against the file's size.

    Raises BadModelError.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise BadModelError(f"{path}: {error.strerror}") from error
    with path.open("rb") as file:
        start = file.read(LENGTH_BYTES)
        length = int.from_bytes(start, "little")
        if len(start) < LENGTH_BYTES or not 2 <= length <= size - LENGTH_BYTES:
            raise BadModelError(
                f"the file is no safetensors file{_looks_like(start)}; only safetensors is taken"
            )
        if length > LONGEST_HEADER:
            raise BadModelError(f"the header has {length} bytes; at most {LONGEST_HEADER} are accepted")
        text = file.read(length)
    try:
        document: Any = json.loads(text)
        labels = document.pop("__metadata__", {})
        tensors = {name: _entry(name, claim) for name, claim in document.items()}
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise BadModelError(f"the header is not that of a safetensors file{_looks_like(start)}") from error
    if not isinstance(labels, dict) or not all(isinstance(text, str) for text in labels.values()):
        raise BadModelError("__metadata__ in the header: texts by name are allowed")
    data_bytes = size - LENGTH_BYTES - length
    position = 0
    for name, (_, _, begin, end) in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if begin != position or end < begin:
            raise BadModelError(
                f"tensor {name!r} lies at bytes {begin} to {end}; {position} is where it must begin"
            )
        position = end
    if position != data_bytes:
        raise BadModelError(f"the header claims {position} bytes of tensors; the file holds {data_bytes}")
    return Header(tensors, labels, data_bytes)


def compare(header: Header, wanted: dict[str, Tensor], architecture: str) -> None:
    """Raises BadModelError unless the file holds the ``wanted`` tensors, each in its shape and type."""
    for what, names in (
        ("lacks", wanted.keys() - header.tensors.keys()),
        ("does not know", header.tensors.keys() - wanted.keys()),
    ):
        if names:
            shown = ", ".join(repr(name[:100]) for name in sorted(names)[:NAMED])
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            who = "the file" if what == "lacks" else architecture
            raise BadModelError(f"{who} {what} {shown}{more}; {architecture} has {len(wanted)} tensors")
    for name, tensor in wanted.items():
        kind, shape, begin, end = header.tensors[name]
        needed, item_bytes = _TYPES[tensor.dtype]
        if kind != needed:
            raise BadModelError(f"tensor {name!r} is of type {kind[:20]}; {needed} is what it must be")
        if shape != tuple(tensor.shape):
            raise BadModelError(
                f"tensor {name!r} has the shape {list(shape)[:10]}; {list(tensor.shape)} is what it must have"
            )
        if end - begin != item_bytes * math.prod(shape):
            raise BadModelError(f"tensor {name!r} lies in {end - begin} bytes, which does not fit its shape")


def exported_by(labels: dict[str, str]) -> ExperimentSpec | None:
    """The experiment that a checkpoint of ours names in its header; None if it is no checkpoint of ours."""
    if "spec" not in labels:
        return None
    try:
        return ExperimentSpec.model_validate_json(labels["spec"])
    except ValueError as error:
        raise BadModelError(
            "the spec in the header is none that this version can read; name the model"
        ) from error


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entry(name: str, claim: dict[str, Any]) -> tuple[str, tuple[int, ...], int, int]:
    kind, shape, (begin, end) = claim["dtype"], claim["shape"], claim["data_offsets"]
    numbers = [*shape, begin, end]
    if not isinstance(kind, str) or not all(type(n) is int and 0 <= n < 2**62 for n in numbers):
        raise ValueError(name)
    return kind, tuple(shape), begin, end


def _looks_like(start: bytes) -> str:
    found = next((what for magic, what in _FOREIGN.items() if start.startswith(magic)), None)
    return f" but looks like {found}" if found else ""


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
