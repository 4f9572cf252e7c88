"""A victim that the user uploads: a safetensors file, validated before any tensor of it is loaded.

The header is read first. Every name, shape and type in it must be those of the architecture, so what is loaded is
never larger than the architecture; and nothing is ever unpickled.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from app.specs.experiment import ExperimentSpec
from app.specs.facts import Shape
from app.specs.model import ModelSpec
from worker.lab.contracts import LabError
from worker.lab.networks import Network, build_network
from worker.lab.networks.checkpoints import find_variant, rename_tensor, rename_tensors
from worker.lab.networks.trigger_input import TriggerInput

LENGTH_BYTES = 8
LONGEST_HEADER = 1_000_000
MAX_NAMES = 3  # tensors that a message names
PROBE_SIDE = 32  # pixels a side of the random images that a model is tried on, at most
_DTYPES = {torch.float32: "F32", torch.int64: "I64"}
"""The types that our networks have, as safetensors names them."""
_FOREIGN = {b"PK\x03\x04": "a zip, as torch.save writes it", b"\x80": "a pickle", b"\x89HDF": "an HDF5 file"}


class BadModelError(LabError):
    """A file that cannot be used as a model; the message says why."""


@dataclass(frozen=True)
class UserModel:
    """A validated model. ``sha256`` is that of its file, ``variant`` the architecture that its tensors show."""

    tensors: dict[str, Tensor]
    sha256: str
    variant: ModelSpec

    @property
    def adds_trigger(self) -> bool:
        """True if the model puts a patch on every input, as those of the defense `nab` do."""
        return "stamp_mask" in self.tensors


@dataclass(frozen=True)
class Header:
    """``tensors``: name to (type, shape); ``labels``: the metadata that the file's writer added."""

    tensors: dict[str, tuple[str, tuple[int, ...]]]
    labels: dict[str, str]


def load_user_model(path: Path, model: ModelSpec, shape: Shape) -> UserModel:
    """Load the file at ``path`` as a ``model`` for images of that ``shape``, on the CPU. Raises BadModelError."""
    header = read_header(path)
    named = Header(
        {rename_tensor(model, name): facts for name, facts in header.tensors.items()}, header.labels
    )
    variant = find_variant(model, named.tensors)
    network = build_empty_network(variant, shape, "stamp_mask" in named.tensors)
    check_tensors(named, network.state_dict(), model.name)
    tensors = rename_tensors(model, load_file(path))
    network.load_state_dict(tensors)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise BadModelError(f"tensor {name!r} holds NaN or infinity")
    # Zero deviations and negative variances are finite, but the logits are not. Small images show that as well as
    # large ones, whose feature maps may need far more memory than the file. A trigger has the full size, so the inner
    # network is tried.
    inner = network.network if isinstance(network, TriggerInput) else network
    sides = min(shape.height, PROBE_SIDE), min(shape.width, PROBE_SIDE)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        logits = inner.eval()(torch.rand(2, shape.channels, *sides, generator=generator))
    if not torch.isfinite(logits).all():
        raise BadModelError("the model's logits for random images are not finite")
    return UserModel(tensors, file_sha256(path), variant)


def build_empty_network(model: ModelSpec, shape: Shape, adds_trigger: bool) -> Network:
    """A network to load a checkpoint into."""
    network = build_network(model, shape, "load")
    if not adds_trigger:
        return network
    blank = torch.zeros(1, 1, shape.height, shape.width)
    return TriggerInput(network, blank, blank.clone())


def read_header(path: Path) -> Header:
    """The header of the safetensors file at ``path``; no tensor is loaded.

    `safe_open` checks that the tensors cover the file without gaps or overlaps and fit their shapes and types.
    Raises BadModelError.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(LENGTH_BYTES)
    except OSError as error:
        raise BadModelError(f"{path}: {error.strerror}") from error
    length = int.from_bytes(start, "little")
    # safe_open accepts headers of 100 MB; ours take a few kilobytes.
    if LONGEST_HEADER < length <= size - LENGTH_BYTES:
        raise BadModelError(f"the header has {length} bytes; at most {LONGEST_HEADER} are accepted")
    try:
        with safe_open(path, framework="np") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  # not a mapping
            tensors = {name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
            labels = opened.metadata() or {}
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")[:200]
        raise BadModelError(f"not a valid safetensors file{_looks_like(start)}: {reason}") from error
    return Header(tensors, labels)


def check_tensors(header: Header, expected: dict[str, Tensor], architecture: str) -> None:
    """Raises BadModelError unless the file holds exactly the ``expected`` tensors, each in its shape and type."""
    for problem, names in (
        ("missing", expected.keys() - header.tensors.keys()),
        ("unexpected", header.tensors.keys() - expected.keys()),
    ):
        if names:
            listed = ", ".join(repr(name[:100]) for name in sorted(names)[:MAX_NAMES])
            more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
            raise BadModelError(
                f"{problem} tensors: {listed}{more}; {architecture} has {len(expected)} tensors"
            )
    for name, tensor in expected.items():
        dtype, shape = header.tensors[name]
        if dtype != _DTYPES[tensor.dtype]:
            raise BadModelError(f"tensor {name!r} is of type {dtype}, not {_DTYPES[tensor.dtype]}")
        if shape != tuple(tensor.shape):
            raise BadModelError(f"tensor {name!r} has the shape {list(shape)[:10]}, not {list(tensor.shape)}")


def read_exported_spec(labels: dict[str, str]) -> ExperimentSpec | None:
    """The experiment that an exported checkpoint names in its header; None for files from elsewhere.

    Raises BadModelError if this version cannot read it.
    """
    if "spec" not in labels:
        return None
    try:
        return ExperimentSpec.model_validate_json(labels["spec"])
    except ValueError as error:
        raise BadModelError("this version cannot read the spec in the header; name the model") from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _looks_like(start: bytes) -> str:
    format_ = next((name for magic, name in _FOREIGN.items() if start.startswith(magic)), None)
    return f" (it looks like {format_})" if format_ else ""
