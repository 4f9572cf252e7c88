"""Room for arrays of images: in memory, and on disk for those that are too large for it."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from worker.lab.contracts import LabError

MOST_BYTES = 2**40
"""Default of the largest accepted decoded dataset, in bytes."""
IN_MEMORY_SHARE = 1 / 8
"""Share of this machine's memory above which a new array is put on disk, if there is a folder for it."""
_MEMINFO, _CGROUP_LIMIT = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")


def host_memory() -> int | None:
    """Bytes of memory of this machine, or of its container if that has a lower limit; None if unknown."""
    sizes = []
    for read in (_read_total, lambda: int(_CGROUP_LIMIT.read_text())):
        try:
            sizes.append(read())
        except (OSError, ValueError, LookupError):  # another system, or no limit
            continue
    return min(sizes, default=None)


def _read_total() -> int:
    lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
    return int(lines["MemTotal"].split()[0]) * 1024


@dataclass(frozen=True)
class Space:
    """Room for a dataset of at most ``most_bytes``; arrays that are too large for memory go to ``folder``."""

    most_bytes: int = MOST_BYTES
    folder: Path | None = None

    def new_array(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """An uninitialized uint8 array. One on disk is in a file that is deleted when the array is.

        Raises LabError if the disk is full.
        """
        size, total = int(np.prod(shape, dtype=object)), host_memory()
        if self.folder is None or total is None or size <= IN_MEMORY_SHARE * total:
            return np.empty(shape, np.uint8)
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.folder) as file:
            try:
                # A full disk is an error here; found when a page is written, it would kill the process.
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise LabError(
                    f"{size / 2**30:.1f} GiB for images do not fit into {self.folder}: {error.strerror}"
                ) from error
            return np.memmap(file, np.uint8, mode="r+", shape=shape)
