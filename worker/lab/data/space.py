"""Room for arrays of images: in memory, and on disk for those that are too large for it."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from worker.lab.contracts import LabError
from worker.lab.host_memory import read_memory

MOST_BYTES = 2**40
"""Default of the largest accepted decoded dataset, in bytes."""
IN_MEMORY_SHARE = 1 / 8
"""Share of this machine's memory above which a new array is put on disk, if there is a folder for it."""


@dataclass(frozen=True)
class Space:
    """Room for a dataset of at most ``most_bytes``; arrays that are too large for memory go to ``folder``."""

    most_bytes: int = MOST_BYTES
    folder: Path | None = None

    def new_array(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """An uninitialized uint8 array. One on disk is in a file that is deleted when the array is.

        Raises LabError if the disk is full.
        """
        size, memory = int(np.prod(shape, dtype=object)), read_memory()
        if self.folder is None or memory is None or size <= IN_MEMORY_SHARE * memory.total:
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
