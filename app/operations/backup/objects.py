"""Copies the objects of one store to another."""

import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from app.core.objects import CONTENT, Objects, Stored

CHECKPOINTS = "checkpoints/"
"""Prefix of the only objects that are overwritten with other content."""
THREADS = 8


@dataclass
class Copied:
    """The number of objects copied, and the keys of those left out because their content does not match the key."""

    count: int = 0
    damaged: list[str] = field(default_factory=list)


def copy_objects(source: Objects, listed: Mapping[str, Stored], target: Objects) -> Copied:
    """Copy every object of ``listed`` that ``target`` lacks. Skips objects that are deleted meanwhile."""
    present = target.list_all()
    missing = [
        key
        for key, stored in listed.items()
        if key.startswith(CHECKPOINTS) or key not in present or present[key].size != stored.size
    ]
    copied = Copied()
    with tempfile.TemporaryDirectory(prefix="bdlab-backup-") as folder, ThreadPoolExecutor(THREADS) as pool:

        def copy(key: str) -> bool | None:
            return _copy(source, target, key, Path(folder) / key.replace("/", "-"))

        for key, is_intact in zip(missing, pool.map(copy, missing), strict=True):
            copied.count += is_intact is True
            if is_intact is False:
                copied.damaged.append(key)
    return copied


def _copy(source: Objects, target: Objects, key: str, path: Path) -> bool | None:
    """Copy one object through a file. Returns whether it is intact; None if it was deleted."""
    digest = source.download(key, path)
    if digest is None:
        return None
    match = CONTENT.fullmatch(key)
    is_intact = match is None or match[1] == digest
    if is_intact:
        target.put_file(key, path)
    path.unlink()
    return is_intact
