"""Files that this machine holds and nobody needs: data sets of uploads that are deleted, and unfinished files of
processes that were killed.

A worker on a machine of its own calls this by itself, since nobody else sees its folder.
"""

import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import select

from app.core.database import Database
from app.operations.housekeeping.report import Tally
from app.settings import Settings
from app.tables.uploads import Upload

FETCHED = re.compile(r"([0-9a-f-]{36})\.safetensors")
PARTIAL = re.compile(r"\.fetch-.+")
STAGED = re.compile(r".+#\d+")
"""How obstore names the part of an object that is not whole yet, in a folder."""


class Found(NamedTuple):
    """A file that nobody needs, if it is old enough."""

    what: str
    path: Path
    size: int
    modified: float


def sweep(files: Iterable[Found], grace_seconds: float, delete: bool, tally: Tally) -> None:
    """Delete those that are so old, or only count them."""
    old = time.time() - grace_seconds
    for what, path, size, modified in files:
        if modified >= old:
            continue
        if delete:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                tally.remark(f"not deleted: {error}")
                continue
        tally.add("orphans", what, str(path), size)


def fetched(settings: Settings, database: Database) -> Iterator[Found]:
    """What workers fetched for experiments on uploaded data sets."""
    folder = settings.datasets / "uploaded"
    for path, size, modified in _files(folder):
        if PARTIAL.fullmatch(path.name):
            yield Found("unfinished fetches of data sets", path, size, modified)
        elif match := FETCHED.fullmatch(path.name):
            with database.whole.reading() as session:
                there = session.scalar(select(Upload.id).where(Upload.id == match[1]))
            if there is None:
                yield Found("fetched data sets of uploads that are deleted", path, size, modified)


def staged(settings: Settings) -> Iterator[Found]:
    """Objects that were never whole, where the store is a folder."""
    if settings.objects.startswith("file://"):
        for path, size, modified in _files(Path(settings.objects.removeprefix("file://"))):
            if STAGED.fullmatch(path.name):
                yield Found("unfinished objects", path, size, modified)


def _files(folder: Path) -> Iterator[tuple[Path, int, float]]:
    for path in folder.rglob("*"):
        try:
            facts = path.lstat()
        except OSError:  # gone meanwhile
            continue
        if path.is_file():
            yield path, facts.st_size, facts.st_mtime
