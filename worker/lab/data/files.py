"""Datasets on disk: one safetensors file each, images and labels, with their facts in the header.

Tensors: ``x_train`` and ``x_test`` uint8 ``[N, C, H, W]``, ``y_train`` and ``y_test`` int64 ``[N]``.
A dataset that came poisoned may have some of `app.specs.facts.GIVEN_TENSORS` as well.
Header: ``facts``, the JSON of `app.specs.facts.DatasetFacts`, and ``sha256`` over the tensors' bytes.

Whoever reads a file compares it with both. A process does so once for each state of a file: hashing CIFAR-10, 185 MB,
takes 0.1 to 0.2 s, which is much for an interactive request and little for an experiment.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from app.specs.base import canonical_json
from app.specs.facts import GIVEN_TENSORS, TENSORS, DatasetFacts
from worker.lab.contracts import DatasetDamagedError, DatasetMissingError, LabError

Array = NDArray[Any]
FileState = tuple[str, int, int, int, int]
NAMES = TENSORS
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
    facts, sha256 = _facts(tensors, class_names), digest(tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    os.close(handle)
    try:
        save_file(tensors, partial, metadata={"facts": canonical_json(facts), "sha256": sha256})
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    return facts, sha256


def read(path: Path) -> tuple[dict[str, Array], DatasetFacts, str]:
    """The tensors, facts and digest of the dataset at ``path``.

    Raises DatasetMissingError if the file does not exist, LabError if `write` did not write it, DatasetDamagedError if
    it no longer holds what `write` wrote.
    """
    state = _state(path)
    with _opened(path) as (file, facts, sha256):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is not a dictionary
    if state not in _INTACT:
        # The digest first: damaged labels may be too large to count.
        if digest(tensors) != sha256 or _facts(tensors, facts.class_names) != facts:
            raise DatasetDamagedError(
                f"the dataset {path.stem!r} is damaged: {path} does not hold what was written to it"
            )
        if _state(path) == state:  # else it was replaced while it was read
            _INTACT.add(state)
    return tensors, facts, sha256


def is_intact(path: Path) -> bool:
    """Whether `read` succeeds; the file is read unless this process has read it in its present state."""
    try:
        if _state(path) not in _INTACT:
            read(path)
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
    for name in NAMES:
        total.update(np.ascontiguousarray(tensors[name]).data)
    for name in GIVEN_TENSORS:
        if name in tensors:
            total.update(name.encode())
            total.update(np.ascontiguousarray(tensors[name]).data)
    return total.hexdigest()
