"""NumPy archives with ``x_train, y_train``, and optionally ``x_test, y_test``, ``class_names``, and what a dataset that
came poisoned has besides."""

import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from worker.lab.data.checking import GIVEN_ARRAYS, Array, BadSourceError, Source
from worker.lab.data.readers.zips import open_zip
from worker.lab.data.space import Space

UNPACKED_BYTES = 2**24
ARRAYS = ("x_train", "y_train", "x_test", "y_test", "class_names", *GIVEN_ARRAYS)


def read(path: Path, space: Space) -> Source:
    """The arrays of ``path``; both test arrays may be missing. Raises BadSourceError."""
    try:
        with open_zip(path) as archive:
            total = sum(member.file_size for member in archive.infolist())
            if total <= space.most_bytes:
                for member in archive.infolist():
                    if member.filename.removesuffix(".npy") in ARRAYS:
                        _check_size(archive, member)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise BadSourceError(f"{path} is not an .npz archive that can be read: {error}") from error
    if total > space.most_bytes:
        raise BadSourceError(
            f"{path} unpacks to {total / 2**20:.1f} MiB; at most {space.most_bytes / 2**20:.1f} are accepted"
        )
    with np.load(path) as arrays:
        required = ["x_train", "y_train"]
        if "x_test" in arrays.files or "y_test" in arrays.files:
            required += ["x_test", "y_test"]
        for name in required:
            if name not in arrays.files:
                present = ", ".join(arrays.files) or "nothing"
                raise BadSourceError(
                    f"{path} has no array {name}; needed are x_train, y_train, x_test, y_test; "
                    f"it has {present}"
                )
        sets = {name: _array(arrays, name, space) for name in required}
        names = _class_names(_array(arrays, "class_names", space)) if "class_names" in arrays.files else None
        given = {name: _array(arrays, name, space) for name in GIVEN_ARRAYS if name in arrays.files}
        unused = [name for name in arrays.files if name not in ARRAYS]
    notes = [f"the arrays {', '.join(unused)} are not used"] if unused else []
    return Source(**sets, class_names=names, notes=notes, given=given)


def _class_names(array: Array) -> tuple[str, ...]:
    """The names in the array ``class_names``. Raises BadSourceError."""
    if array.ndim != 1:
        raise BadSourceError(f"class_names: shape {list(array.shape)}; allowed is [classes]")
    names: list[object] = array.tolist()
    try:
        return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)
    except UnicodeDecodeError as error:
        raise BadSourceError(f"class_names: {error.object!r} is not UTF-8") from error


def _check_size(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Check an array's header against the member's size, since NumPy allocates whatever the header declares."""
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
            raise BadSourceError(f"{name}: the archive's member is not a NumPy array") from None
        declared, actual = math.prod(shape) * kind.itemsize, member.file_size - file.tell()
    if not kind.hasobject and declared != actual:
        name = member.filename.removesuffix(".npy")
        raise BadSourceError(f"{name}: the header declares {declared} bytes, but the archive has {actual}")


def _unpack(arrays: "np.lib.npyio.NpzFile", name: str, space: Space) -> object:
    """The array ``name``; bytes in the usual order are unpacked piece by piece, since there may be more than memory."""
    archive: Any = arrays.zip
    if f"{name}.npy" in archive.namelist():
        with archive.open(f"{name}.npy") as file:
            if np.lib.format.read_magic(file) == (1, 0):
                shape, is_fortran, kind = np.lib.format.read_array_header_1_0(file)
                if kind == np.uint8 and not is_fortran:
                    array: Any = space.new_array(shape)
                    flat = memoryview(array.reshape(-1))
                    for start in range(0, len(flat), UNPACKED_BYTES):
                        piece = flat[start : start + UNPACKED_BYTES]
                        piece[:] = file.read(len(piece))
                    return array
    whole: object = arrays[name]
    return whole


def _array(arrays: "np.lib.npyio.NpzFile", name: str, space: Space) -> Array:
    try:
        array = _unpack(arrays, name, space)
    except (ValueError, EOFError, OSError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise BadSourceError(
                f"{name}: contains Python objects, as for images of different sizes; all must have the same size"
            ) from error
        raise BadSourceError(f"{name}: the array cannot be read: {error}") from error
    if not isinstance(array, np.ndarray):
        raise BadSourceError(f"{name}: the archive's member is not a NumPy array")
    return array
