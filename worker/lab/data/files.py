"""Datasets on disk: one safetensors file each, images and labels, with their facts in the header.

Tensors: ``x_train`` and ``x_test`` uint8 ``[N, C, H, W]``, ``y_train`` and ``y_test`` int64 ``[N]``.
A dataset that came poisoned may have some of `app.specs.facts.GIVEN_TENSORS` as well.
Header: ``facts``, the JSON of `app.specs.facts.DatasetFacts`, and ``sha256`` over the tensors' bytes.

Whoever reads a file compares it with both. A process does so once for each state of a file: hashing CIFAR-10, 185 MB,
takes 0.1 to 0.2 s, which is much for an interactive request and little for an experiment.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from app.specs.base import canonical_json
from app.specs.facts import GIVEN_TENSORS, TENSORS, DatasetFacts
from worker.lab.contracts import DatasetDamagedError, DatasetMissingError, LabError

Array = NDArray[Any]
FileState = tuple[str, int, int, int, int]
NAMES = TENSORS
CHUNK_BYTES = 2**24
"""Bytes that are hashed or written at a time: a dataset may be larger than memory."""
_LENGTH_BYTES = 8
_TYPES: dict[str, Any] = {"U8": np.dtype(np.uint8), "I64": np.dtype("<i8"), "BOOL": np.dtype(np.bool_)}
_INTACT: set[FileState] = set()
"""States of files that this process has read and found intact."""


def write(
    path: Path,
    *,
    x_train: Array,
    y_train: Array,
    x_test: Array,
    y_test: Array,
    class_names: tuple[str, ...],
    **given: Array,
) -> tuple[DatasetFacts, str]:
    """Write a dataset to ``path`` atomically; returns its facts and digest.

    Images must be uint8 ``[N, C, H, W]``, labels int64 ``[N]`` below ``len(class_names)``, flags bool ``[N]``;
    ``given`` are some of `GIVEN_TENSORS`.
    """
    tensors = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test, **given}
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    facts = _facts(tensors, class_names)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    try:
        with open(handle, "wb") as file:
            sha256 = _write_tensors(file, tensors, canonical_json(facts))
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    return facts, sha256


def _write_tensors(file: BinaryIO, tensors: Mapping[str, Array], facts: str) -> str:
    """Write a safetensors file chunk by chunk, since its own writer copies all tensors first; returns the digest."""
    offsets, end = {}, 0
    for name in sorted(
        tensors, key=lambda name: tensors[name].itemsize, reverse=True
    ):  # so that all are aligned
        offsets[name] = end, end + tensors[name].nbytes
        end += tensors[name].nbytes

    def header(sha256: str) -> bytes:
        kinds = {dtype: kind for kind, dtype in _TYPES.items()}
        entries = {
            name: {
                "dtype": kinds[tensors[name].dtype],
                "shape": tensors[name].shape,
                "data_offsets": offsets[name],
            }
            for name in offsets
        }
        document = {"__metadata__": {"facts": facts, "sha256": sha256}, **entries}
        text = json.dumps(document, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _LENGTH_BYTES)
        return len(text).to_bytes(_LENGTH_BYTES, "little") + text

    total = hashlib.sha256()
    start = len(header(total.hexdigest()))
    for name in _hashed(tensors):
        file.seek(start + offsets[name][0])
        if name in GIVEN_TENSORS:
            total.update(name.encode())
        for chunk in _chunks(tensors[name]):
            total.update(chunk)
            file.write(chunk)
    sha256 = total.hexdigest()
    file.seek(0)
    file.write(header(sha256))
    return sha256


def _hashed(tensors: Mapping[str, Array]) -> list[str]:
    """The names of the tensors in the order of the digest."""
    return [*NAMES, *(name for name in GIVEN_TENSORS if name in tensors)]


def _chunks(array: Array) -> Iterator[memoryview]:
    """The bytes of an array."""
    contiguous: Any = np.ascontiguousarray(array)
    data = memoryview(contiguous).cast("B") if array.size else memoryview(b"")
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]


def read(path: Path, mapped: bool = False) -> tuple[dict[str, Array], DatasetFacts, str]:
    """The tensors, facts and digest of the dataset at ``path``; if ``mapped``, the tensors are read when they are used.

    Raises DatasetMissingError if the file does not exist, LabError if `write` did not write it, DatasetDamagedError if
    it no longer holds what `write` wrote.
    """
    state = _state(path)
    with _opened(path) as (file, facts, sha256):
        names = list(file.keys())
        tensors = _map_tensors(path) if mapped else {name: file.get_tensor(name) for name in names}
    if state not in _INTACT:
        # The digest first: damaged labels may be too large to count.
        if digest(tensors) != sha256 or _facts(tensors, facts.class_names) != facts:
            raise DatasetDamagedError(
                f"the dataset {path.stem!r} is damaged: {path} does not hold what was written to it"
            )
        if _state(path) == state:  # else it was replaced while it was read
            _INTACT.add(state)
    return tensors, facts, sha256


def _map_tensors(path: Path) -> dict[str, Array]:
    """The tensors of a safetensors file, which cannot be written to; labels are in memory."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header = json.loads(file.read(length))
    # Shared: the system counts private pages that can be written to as memory that may be needed.
    arrays = {
        name: np.memmap(
            path,
            _TYPES[header[name]["dtype"]],
            mode="r",
            offset=_LENGTH_BYTES + length + header[name]["data_offsets"][0],
            shape=tuple(header[name]["shape"]),
        )
        for name in header
        if name != "__metadata__"
    }
    return {name: np.array(array) if array.ndim == 1 else array for name, array in arrays.items()}


def is_intact(path: Path) -> bool:
    """Whether `read` succeeds; the file is read unless this process has read it in its present state."""
    try:
        if _state(path) not in _INTACT:
            read(path, mapped=True)
    except LabError:
        return False
    return True


def read_header(path: Path) -> tuple[DatasetFacts, str]:
    """Facts and digest of the dataset at ``path`` without reading its images, so unchecked. Raises as `read` does."""
    with _opened(path) as (_, facts, sha256):
        return facts, sha256


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, DatasetFacts, str]]:
    """The open file, and the facts and the digest in its header."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(safe_open(path, framework="np"))
            metadata = file.metadata() or {}
            if not set(NAMES) <= set(file.keys()) <= {*NAMES, *GIVEN_TENSORS}:
                raise ValueError(f"it has the tensors {sorted(file.keys())}, not {sorted(NAMES)}")
            facts, sha256 = DatasetFacts.model_validate_json(metadata["facts"]), metadata["sha256"]
        except FileNotFoundError as error:
            raise DatasetMissingError(f"no dataset at {path}") from error
        except Exception as error:  # from safetensors, pydantic or a lookup: not a file that `write` wrote
            raise LabError(f"{path} is not a dataset written by `bdlab data import`: {error}") from error
        yield file, facts, sha256


def _state(path: Path) -> FileState:
    """Changes whenever a program writes to the file."""
    try:
        status = path.stat()
    except OSError as error:
        raise DatasetMissingError(f"no dataset at {path}") from error
    return str(path), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _facts(tensors: Mapping[str, Array], class_names: tuple[str, ...]) -> DatasetFacts:
    x_train, classes = tensors["x_train"], len(class_names)
    is_poisoned, triggered = tensors.get("is_poisoned"), tensors.get("y_test_triggered")
    return DatasetFacts(
        class_names=class_names,
        channels=x_train.shape[1],
        height=x_train.shape[2],
        width=x_train.shape[3],
        train_counts=tuple(np.bincount(tensors["y_train"], minlength=classes).tolist()),
        test_counts=tuple(np.bincount(tensors["y_test"], minlength=classes).tolist()),
        poisoned=None if is_poisoned is None else int(is_poisoned.sum()),
        triggered=0 if triggered is None else len(triggered),
    )


def digest(tensors: Mapping[str, Array]) -> str:
    """SHA-256 in hexadecimal over the bytes of the tensors of `NAMES`, then of the names and the bytes of those of
    `GIVEN_TENSORS` that there are."""
    total = hashlib.sha256()
    for name in _hashed(tensors):
        if name in GIVEN_TENSORS:
            total.update(name.encode())
        for chunk in _chunks(tensors[name]):
            total.update(chunk)
    return total.hexdigest()
