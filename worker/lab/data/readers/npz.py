"""NumPy archives with ``x_train, y_train, x_test, y_test`` and, if wanted, ``class_names``."""

import zipfile
from pathlib import Path

import numpy as np

from worker.lab.data.checking import Array, BadSourceError, Source
from worker.lab.data.readers.decoding import MAX_TOTAL_BYTES


def read(path: Path) -> Source:
    """The arrays of ``path``; the test arrays may be missing, both of them. Raises BadSourceError."""
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(member.file_size for member in archive.infolist())
    except zipfile.BadZipFile as error:
        raise BadSourceError(f"{path} is not an .npz archive: {error}") from error
    if total > MAX_TOTAL_BYTES:
        raise BadSourceError(
            f"{path} unpacks to {total >> 20} MiB; at most {MAX_TOTAL_BYTES >> 20} are accepted"
        )
    with np.load(path) as arrays:
        wanted = ["x_train", "y_train"]
        if "x_test" in arrays.files or "y_test" in arrays.files:
            wanted += ["x_test", "y_test"]
        for name in wanted:
            if name not in arrays.files:
                there = ", ".join(arrays.files) or "nothing"
                raise BadSourceError(
                    f"{path} has no array {name}; needed are x_train, y_train, x_test, y_test; "
                    f"it holds {there}"
                )
        found = {name: _array(arrays, name) for name in wanted}
        names = _array(arrays, "class_names") if "class_names" in arrays.files else None
    return Source(**found, class_names=None if names is None else tuple(map(str, names.tolist())))


def _array(arrays: "np.lib.npyio.NpzFile", name: str) -> Array:
    try:
        array: object = arrays[name]
    except (ValueError, EOFError, OSError, MemoryError, zipfile.BadZipFile) as error:
        if "allow_pickle" in str(error):
            raise BadSourceError(
                f"{name}: holds Python objects, as for images of differing sizes; all must be equally large"
            ) from error
        raise BadSourceError(f"{name}: the array cannot be read: {error}") from error
    if not isinstance(array, np.ndarray):
        raise BadSourceError(f"{name}: the archive's member is no NumPy array")
    return array
