"""Objects from one store to another, each once."""

import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from app.core.objects import Objects
from app.operations.housekeeping.inventory import Inventory, Stored

CONTENT = re.compile(r"sha256/[0-9a-f]{2}/([0-9a-f]{64})")
CHANGING = "checkpoints/"
"""The only objects that are written again with other content; of all others the key says it, for good."""
AT_ONCE = 8


class Copied:
    """What came of it: objects and bytes of the source; ``new`` are those that had to be copied."""

    def __init__(self) -> None:
        self.objects = self.bytes = self.new = 0
        self.damaged: list[str] = []
        """Keys whose content is not what it should be; they are not copied."""


def copy(source: Objects, there: Inventory, target: Objects) -> Copied:
    """Copy every object that ``there`` lists and ``target`` lacks. What has gone meanwhile is left out."""
    done = Copied()
    with (
        Inventory(target) as here,
        tempfile.TemporaryDirectory(prefix="bdlab-backup-") as folder,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):

        def one(stored: Stored) -> bool | None:
            return _copy(source, target, stored.key, Path(folder) / stored.key.replace("/", "-"))

        for page in there.pages():
            sizes = here.sizes([stored.key for stored in page])
            wanted = [s for s in page if s.key.startswith(CHANGING) or sizes.get(s.key) != s.size]
            done.objects += len(page)
            done.bytes += sum(stored.size for stored in page)
            for stored, sound in zip(wanted, pool.map(one, wanted), strict=True):
                done.new += sound is True
                if sound is False:
                    done.damaged.append(stored.key)
    return done


def prune(target: Objects, kept: Inventory) -> None:
    """Delete what ``kept`` does not list."""
    for page in target.listing():
        target.delete_all(kept.missing([key for key, _, _ in page]))


def _copy(source: Objects, target: Objects, key: str, path: Path) -> bool | None:
    """Copy one object by way of a file. Whether it is sound; None if it has gone."""
    digest = source.download(key, path)
    if digest is None:
        return None
    match = CONTENT.fullmatch(key)
    sound = match is None or match[1] == digest
    if sound:
        target.put_file(key, path)
    path.unlink()
    return sound
