"""Migrated SQLite databases: copies of one that each process of the tests migrates, which takes half a second."""

import tempfile
from functools import cache
from pathlib import Path

from sqlalchemy import make_url

from app.operations import schema


def migrate(url: str) -> None:
    """As `schema.upgrade`, but a new SQLite database is a copy."""
    path = make_url(url).database if url.startswith("sqlite") else None
    if path is not None and not Path(path).exists():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(_migrated())
    else:
        schema.upgrade(url)


@cache
def _migrated() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "migrated.sqlite3"
        schema.upgrade(f"sqlite:///{path}")
        return path.read_bytes()
