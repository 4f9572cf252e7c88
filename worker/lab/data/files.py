"""Datasets on disk: one safetensors file each, images and labels, with their facts in the header.

Tensors: ``x_train`` and ``x_test`` uint8 ``[N, C, H, W]``, ``y_train`` and ``y_test`` int64 ``[N]``.
Header: ``facts``, the JSON of `app.specs.facts.DatasetFacts`, and ``sha256`` over the tensors' bytes.
"""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from app.specs.base import canonical_json
from app.specs.facts import DatasetFacts
from worker.lab.contracts import DatasetMissingError, LabError

Array = NDArray[Any]
NAMES = ("x_train", "y_train", "x_test", "y_test")


def write(
    path: Path,
    *,
    x_train: Array,
    y_train: Array,
    x_test: Array,
    y_test: Array,
    class_names: tuple[str, ...],
) -> tuple[DatasetFacts, str]:
    """Write a dataset to ``path`` atomically; returns its facts and digest.

    Images must be uint8 ``[N, C, H, W]``, labels int64 ``[N]`` below ``len(class_names)``.
    """
    tensors = {
        name: np.ascontiguousarray(array)
        for name, array in zip(NAMES, (x_train, y_train, x_test, y_test), strict=True)
    }
    facts = DatasetFacts(
        class_names=class_names,
        channels=x_train.shape[1],
        height=x_train.shape[2],
        width=x_train.shape[3],
        train_counts=tuple(np.bincount(y_train, minlength=len(class_names)).tolist()),
        test_counts=tuple(np.bincount(y_test, minlength=len(class_names)).tolist()),
    )
    sha256 = digest(tensors)
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

    Raises DatasetMissingError if the file does not exist, LabError if `write` did not write it.
    """
    facts, sha256 = read_header(path)
    return load_file(path), facts, sha256


def read_header(path: Path) -> tuple[DatasetFacts, str]:
    """Facts and digest of the dataset at ``path`` without reading its images. Raises as `read` does."""
    if not path.is_file():
        raise DatasetMissingError(f"no dataset at {path}")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            if set(file.keys()) != set(NAMES):
                raise ValueError(f"it has the tensors {sorted(file.keys())}, not {sorted(NAMES)}")
        return DatasetFacts.model_validate_json(metadata["facts"]), metadata["sha256"]
    except Exception as error:  # from safetensors, pydantic or a lookup: not a file that `write` wrote
        raise LabError(f"{path} is not a dataset written by `bdlab data import`: {error}") from error


def digest(tensors: Mapping[str, Array]) -> str:
    """SHA-256 over the bytes of the four tensors in the order of `NAMES`, in hexadecimal."""
    total = hashlib.sha256()
    for name in NAMES:
        total.update(np.ascontiguousarray(tensors[name]).data)
    return total.hexdigest()
