"""Processes in /proc, and waiting for conditions."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    """Wait until ``condition()`` is true and return its value. ``what`` names it in the error."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"timeout after {seconds} s: {what}"
        time.sleep(0.02)
    return value


def descendants(pid: int, depth: int | None = None) -> list[int]:
    """The live descendants of a process, down to ``depth`` generations."""
    if depth == 0:
        return []
    pids = []
    for child in _children(pid):
        pids += [child, *descendants(child, None if depth is None else depth - 1)]
    return pids


def command_line(pid: int) -> str:
    """The command of a process; empty if it has ended or is a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def process_title(pid: int) -> str:
    """The name that ps and top show for a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except OSError:
        return ""


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    return _state_and_parent(pid)[0] not in ("", "Z")


def _children(pid: int) -> list[int]:
    numbers = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [number for number in numbers if _state_and_parent(number)[1] == pid and alive(number)]


def _state_and_parent(pid: int) -> tuple[str, int]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "", 0
    state, parent = text.rpartition(")")[2].split()[:2]  # the name before it may contain anything
    return state, int(parent)
