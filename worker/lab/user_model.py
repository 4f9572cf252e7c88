"""A victim that the user uploads: a safetensors file, validated before any tensor of it is loaded.

The header is read first. Every name in it must map to one of the architecture, with its shape, so what is loaded is
never larger than the architecture in 64 bits; and nothing is ever unpickled.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from app.specs.checks import find_size_problem
from app.specs.experiment import ExperimentSpec
from app.specs.facts import Shape
from app.specs.model import ModelSpec
from worker.lab.contracts import LabError
from worker.lab.networks import Network, build_network
from worker.lab.networks.checkpoints import (
    COUNTER,
    NORMALIZATION,
    Match,
    describe_misfit,
    find_variant,
    match_names,
    read_normalization,
    shapes_of,
)
from worker.lab.networks.trigger_input import TriggerInput

LENGTH_BYTES = 8
LONGEST_HEADER = 1_000_000
PROBE_SIDE = 32  # pixels a side of the random images that a model is tried on, at most
_FLOATS = ("F32", "F16", "BF16", "F64")
_INTEGERS = ("I64", "I32", "I16", "I8", "U8")
"""Types that are converted to those of our networks, float32 and int64, as safetensors names them."""
_FOREIGN = {b"PK\x03\x04": "a zip, as torch.save writes it", b"\x80": "a pickle", b"\x89HDF": "an HDF5 file"}


class BadModelError(LabError):
    """A file that cannot be used as a model; the message says why."""


@dataclass(frozen=True)
class UserModel:
    """A validated model. ``sha256`` is that of its file, ``variant`` the architecture that its tensors show."""

    tensors: dict[str, Tensor]
    """Without ``mean`` and ``std`` if the file does not say how images are normalized."""
    sha256: str
    variant: ModelSpec
    mapped: str
    """One line that says what was renamed, converted or added; empty if nothing was."""

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
    if problem := find_size_problem(model, shape):
        raise BadModelError(str(problem))
    variant, match, expected = fit_names(header, model, shape)
    check_tensors(header, match.names, expected, model.label)
    # Only now does anything take memory: the architecture that a file names may be far larger than the file.
    network = build_empty_network(variant, shape, "stamp_mask" in header.tensors)
    expected = network.state_dict()
    raw = load_file(path)
    tensors = {own: convert_tensor(raw[name], expected[own]) for name, own in match.names.items()}
    types = {
        header.tensors[name][0] for name, own in match.names.items() if expected[own].is_floating_point()
    }
    if foreign := sorted(types - {"F32"}):
        match.notes.append(f"{', '.join(foreign)} converted to F32")
    counters = [name for name in expected if name.endswith(COUNTER) and name not in tensors]
    if counters:
        tensors |= {name: torch.zeros_like(expected[name]) for name in counters}
        match.notes.append(f"{COUNTER} of {len(counters)} layers set to 0")
    if "mean" not in tensors:
        tensors |= _read_normalization(header, shape, match)
    network.load_state_dict(expected | tensors)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise BadModelError(f"tensor {name!r} holds NaN or infinity")
    # Zero deviations and negative variances are finite, but the logits are not. Small images show that as well as
    # large ones, whose feature maps may need far more memory than the file. A trigger has the full size, so the inner
    # network is tried.
    inner = network.network if isinstance(network, TriggerInput) else network
    traits = variant.traits(min(shape.height, shape.width))
    probe = max(shape.height, shape.width) if traits.square else max(PROBE_SIDE, traits.least_side)
    sides = min(shape.height, probe), min(shape.width, probe)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        logits = inner.eval()(torch.rand(2, shape.channels, *sides, generator=generator))
    if not torch.isfinite(logits).all():
        raise BadModelError("the model's logits for random images are not finite")
    return UserModel(tensors, file_sha256(path), variant, "; ".join(match.notes))


def fit_names(header: Header, model: ModelSpec, shape: Shape) -> tuple[ModelSpec, Match, dict[str, Tensor]]:
    """The variant of ``model`` that the file's tensors show, how their names become those of its tensors, and these
    tensors, without values."""
    found = {name: facts[1] for name, facts in header.tensors.items()}

    def expect(variant: ModelSpec) -> dict[str, Tensor]:
        with torch.device("cpu" if model.code else "meta"):  # shapes only; a plug-in may need values
            return build_empty_network(variant, shape, "stamp_mask" in found).state_dict()

    # The names show the variant, and the variant has the names to match.
    usual = expect(model)
    match = match_names(model, found, shapes_of(usual))
    variant = find_variant(model, {own: found[name] for name, own in match.names.items()})
    if variant == model:
        return variant, match, usual
    expected = expect(variant)
    if shapes_of(expected) == shapes_of(usual):
        return variant, match, usual
    match = match_names(variant, found, shapes_of(expected))
    changed = variant.model_dump(mode="json", exclude_none=True).items() - model.model_dump().items()
    match.notes.append(", ".join(f"{name} is {value}" for name, value in sorted(changed)))
    return variant, match, expected


def _read_normalization(header: Header, shape: Shape, match: Match) -> dict[str, Tensor]:
    """Mean and deviation from the metadata; nothing if they are not there, and a note in any case."""
    try:
        normalization = read_normalization(header.labels, shape.channels)
    except ValueError as error:
        raise BadModelError(str(error)) from error
    if normalization is None:
        match.notes.append(
            "no normalization given: images are normalized by mean and deviation of the experiment's training images"
        )
        return {}
    match.notes.append("mean and std from the metadata")
    return normalization


def convert_tensor(tensor: Tensor, expected: Tensor) -> Tensor:
    """``tensor`` in the type and shape of the ``expected`` one."""
    return tensor.to(expected.dtype).reshape(expected.shape)


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


def check_tensors(
    header: Header, names: dict[str, str], expected: dict[str, Tensor], architecture: str
) -> None:
    """Raises BadModelError unless the file holds the ``expected`` tensors, each in its shape and a suitable type.

    ``names`` are those of the network's tensors by those of the file. Counters and normalization may be missing.
    """
    if misfit := describe_misfit(names, expected.keys(), architecture):
        raise BadModelError(misfit)
    if len(set(names.values())) < len(names):
        twice = next(own for own in names.values() if [*names.values()].count(own) > 1)
        both = [repr(name) for name, own in names.items() if own == twice]
        raise BadModelError(f"{' and '.join(both)} are the same tensor, {twice!r} of {architecture}")
    if len(given := [name for name in NORMALIZATION if name in names.values()]) == 1:
        raise BadModelError(f"tensor {given[0]!r} is there alone; mean and std belong together")
    for name, own in names.items():
        dtype, shape = header.tensors[name]
        allowed = _FLOATS if expected[own].is_floating_point() else _INTEGERS
        if dtype not in allowed:
            raise BadModelError(f"tensor {name!r} is of type {dtype}; {', '.join(allowed)} are allowed")
        if shape != tuple(expected[own].shape):
            raise BadModelError(
                f"tensor {name!r} has the shape {list(shape)[:10]}, not {list(expected[own].shape)}"
            )


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
