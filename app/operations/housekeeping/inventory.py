"""A listing of the object store in a temporary SQLite file, so that memory use does not grow with the store."""

import sqlite3
import tempfile
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from app.core.objects import Objects

BATCH = 500


class Stored(NamedTuple):
    """An object in the listing."""

    key: str
    size: int
    modified: datetime


class Inventory:
    """A context manager. Objects that are written after the listing began may be missing from it."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._folder = tempfile.TemporaryDirectory(prefix="bdlab-inventory-")
        self._file = sqlite3.connect(Path(self._folder.name) / "objects.sqlite3", check_same_thread=False)
        self._file.execute(
            "CREATE TABLE objects (key TEXT PRIMARY KEY, size INTEGER, modified REAL) WITHOUT ROWID"
        )

    def __enter__(self) -> Self:
        for page in self._objects.listing():
            rows = ((key, size, modified.timestamp()) for key, size, modified in page)
            self._file.executemany("INSERT OR REPLACE INTO objects VALUES (?, ?, ?)", rows)
        self._file.commit()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._folder.cleanup()

    def pages(self) -> Iterator[list[Stored]]:
        """All objects sorted by key, a few hundred at a time."""
        after = ""
        query = "SELECT key, size, modified FROM objects WHERE key > ? ORDER BY key LIMIT ?"
        while rows := self._file.execute(query, (after, BATCH)).fetchall():
            after = rows[-1][0]
            yield [Stored(key, size, datetime.fromtimestamp(modified, UTC)) for key, size, modified in rows]

    def missing(self, keys: Collection[str]) -> list[str]:
        """The keys that are not in the listing."""
        sizes = self.sizes(keys)
        return [key for key in keys if key not in sizes]

    def sizes(self, keys: Collection[str]) -> dict[str, int]:
        """Size in bytes by key, of those that are in the listing."""
        marks = ",".join("?" * len(keys))
        return dict(self._file.execute(f"SELECT key, size FROM objects WHERE key IN ({marks})", list(keys)))
