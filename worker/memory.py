"""A limit on the memory of a block of code."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROCESS_STATUS = Path("/proc/self/status")


@contextmanager
def limit_memory(additional_bytes: int) -> Iterator[None]:
    """Allocations of more than ``additional_bytes`` above the current use raise MemoryError inside the block.

    Has no effect without /proc, as on macOS.
    """
    if not PROCESS_STATUS.exists():
        yield
        return
    line = next(line for line in PROCESS_STATUS.read_text().splitlines() if line.startswith("VmData:"))
    current = int(line.split()[1]) * 1024
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = current + additional_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard < 0 else min(limit, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
