"""Files on this machine that nothing needs: data sets of deleted uploads, and what killed processes left unfinished.

A worker on its own machine calls this itself, since no other process sees its folder.
"""

import re
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import select

from app.core.database import Database
from app.operations.housekeeping.report import ReportBuilder
from app.settings import Settings
from app.tables.uploads import Upload

FETCHED = re.compile(r"([0-9a-f-]{36})\.safetensors")
PARTIAL = re.compile(r"\.fetch-.+")
UNFINISHED = re.compile(r".+#\d+")
"""How obstore names an unfinished object in a folder."""


class LocalFile(NamedTuple):
    what: str
    path: Path
    size: int
    modified: float


def collect_files(
    files: Iterable[LocalFile], min_age: timedelta, delete: bool, report: ReportBuilder
) -> None:
    """Report files of at least this age, and delete them if ``delete``."""
    modified_before = time.time() - min_age.total_seconds()
    for what, path, size, modified in files:
        if modified >= modified_before:
            continue
        if delete:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                report.remark(f"not deleted: {error}")
                continue
        report.add("orphans", what, str(path), size)


def find_fetched_datasets(settings: Settings, database: Database) -> Iterator[LocalFile]:
    """Copies of uploaded data sets that workers fetched, if the upload is deleted or the fetch did not finish."""
    for path, size, modified in _files(settings.datasets / "uploaded"):
        if PARTIAL.fullmatch(path.name):
            yield LocalFile("unfinished fetches of data sets", path, size, modified)
        elif match := FETCHED.fullmatch(path.name):
            with database.whole.reading() as session:
                exists = session.scalar(select(Upload.id).where(Upload.id == match[1]))
            if exists is None:
                yield LocalFile("fetched data sets of deleted uploads", path, size, modified)


def find_unfinished_objects(settings: Settings) -> Iterator[LocalFile]:
    """Unfinished objects of a store that is a folder."""
    if settings.objects.startswith("file://"):
        for path, size, modified in _files(Path(settings.objects.removeprefix("file://"))):
            if UNFINISHED.fullmatch(path.name):
                yield LocalFile("unfinished objects", path, size, modified)


def _files(folder: Path) -> Iterator[tuple[Path, int, float]]:
    for path in folder.rglob("*"):
        try:
            stat = path.lstat()
        except OSError:  # deleted meanwhile
            continue
        if path.is_file():
            yield path, stat.st_size, stat.st_mtime
