"""Memory of this machine, or of this process's control group (a container, a batch job) if that has a lower limit."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MEMINFO, MEMBERSHIP, GROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
KIBIBYTE = 2**10


class Memory(NamedTuple):
    """Bytes in all, and bytes in use."""

    total: int
    used: int


def read_memory() -> Memory | None:
    """The memory of the group with the lowest limit, or of the machine; None if unknown (not Linux)."""
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        total, free = (int(lines[key].split()[0]) * KIBIBYTE for key in ("MemTotal", "MemAvailable"))
    except (OSError, ValueError, LookupError):
        return None
    # A group without a limit has one of nearly 2**63 in version 1, more than any machine.
    return min((*_read_groups(), Memory(total, total - free)), key=lambda memory: memory.total)


def _read_groups() -> Iterator[Memory]:
    """Limit and use of the groups that this process is in, and of those above them."""
    for folder, limit, used in _list_groups():
        try:
            yield Memory(int((folder / limit).read_text()), int((folder / used).read_text()))
        except (OSError, ValueError):  # no such file, or "max": no limit
            continue


def _list_groups() -> Iterator[tuple[Path, str, str]]:
    """Folders of groups in both versions of Linux' control groups, with the names of their files.

    The root is always among them: in a container it has the container's limit, and the group's own path, where it is
    the host's, does not exist.
    """
    try:
        lines = [line.split(":", 2) for line in MEMBERSHIP.read_text().splitlines()]
    except OSError:
        lines = []
    # Version 1 may have several controllers in one hierarchy ("cpu,memory"); version 2 names none.
    paths = {controller: path for _, controllers, path in lines for controller in controllers.split(",")}
    for root, controllers, limit, used in (
        (GROUPS, "", "memory.max", "memory.current"),
        (GROUPS / "memory", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        own = Path(paths.get(controllers, "/").lstrip("/"))
        for part in (own, *own.parents):
            yield root / part, limit, used
