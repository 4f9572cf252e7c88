"""NumPy archives with ``x_train, y_train, x_test, y_test`` and, if wanted, ``class_names``."""

import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from worker.lab.data.checking import Array, BadSourceError, Source
from worker.lab.data.readers.zips import open_zip

ARRAYS = ("x_train", "y_train", "x_test", "y_test", "class_names")


def read(path: Path, most_bytes: int) -> Source:
    """The arrays of ``path``; the test arrays may be missing, both of them. Raises BadSourceError."""
    try:
        with open_zip(path) as archive:
            total = sum(member.file_size for member in archive.infolist())
            if total <= most_bytes:
                for member in archive.infolist():
                    if member.filename.removesuffix(".npy") in ARRAYS:
                        _check_claim(archive, member)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise BadSourceError(f"{path} is not an .npz archive that can be read: {error}") from error
    if total > most_bytes:
        raise BadSourceError(
            f"{path} unpacks to {total / 2**20:.1f} MiB; at most {most_bytes / 2**20:.1f} are accepted"
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


def _check_claim(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """NumPy believes an array's header and allocates what it claims; so the claim must be the member's size."""
    with archive.open(member) as file:
        try:
            version = np.lib.format.read_magic(file)
            reader = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }
            shape, _, kind = reader[version](file)
        except (ValueError, KeyError):
            name = member.filename.removesuffix(".npy")
            raise BadSourceError(f"{name}: the archive's member is no NumPy array") from None
        claimed, there = math.prod(shape) * kind.itemsize, member.file_size - file.tell()
    if not kind.hasobject and claimed != there:
        name = member.filename.removesuffix(".npy")
        raise BadSourceError(f"{name}: the header claims {claimed} bytes, and the archive holds {there}")


def _array(arrays: "np.lib.npyio.NpzFile", name: str) -> Array:
    try:
        array: object = arrays[name]
    except (ValueError, EOFError, OSError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise BadSourceError(
                f"{name}: holds Python objects, as for images of differing sizes; all must be equally large"
            ) from error
        raise BadSourceError(f"{name}: the array cannot be read: {error}") from error
    if not isinstance(array, np.ndarray):
        raise BadSourceError(f"{name}: the archive's member is no NumPy array")
    return array
