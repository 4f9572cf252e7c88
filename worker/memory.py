"""A bound on the memory that a piece of work may take."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATUS = Path("/proc/self/status")


@contextmanager
def at_most(more_bytes: int) -> Iterator[None]:
    """While open, this process may hold so many bytes more than now; beyond that allocations raise MemoryError.

    Without /proc, as on macOS, there is no bound.
    """
    if not STATUS.exists():
        yield
        return
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmData:"))
    held = int(line.split()[1]) * 1024
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bound = held + more_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (bound if hard < 0 else min(bound, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
