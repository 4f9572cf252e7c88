"""The database as one file: a copy of SQLite's, or a PostgreSQL dump. Both are snapshots that block nobody."""

import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

from sqlalchemy import URL, inspect, make_url
from sqlalchemy.exc import SQLAlchemyError

from app.core.database import make_engine
from app.operations import schema

SQLITE, POSTGRESQL = "database.sqlite3", "database.pgdump"
MAX_ERROR_CHARACTERS = 500


class BackupError(Exception):
    """A backup or restore is not possible; the message is for the user."""


def file_name(url: str) -> str:
    """The file name of the copy, which says which kind of database it is of."""
    return SQLITE if _is_sqlite(make_url(url)) else POSTGRESQL


def save(url: str, path: Path) -> str:
    """Write the database to a new file. Returns its schema's revision. Raises BackupError."""
    revision = _revision(url)
    if revision is None:
        raise BackupError(f"{_shown(url)} has no tables of the service; is BDLAB_DATABASE_URL right?")
    parsed = make_url(url)
    if _is_sqlite(parsed):
        try:
            source = sqlite3.connect(f"{_file(parsed).as_uri()}?mode=ro", uri=True, timeout=30)
            try:
                source.execute("VACUUM INTO ?", (str(path),))
            finally:
                source.close()
        except sqlite3.Error as error:
            raise BackupError(f"{_file(parsed)}: {error}") from error
    else:
        _run("pg_dump", parsed, "--format=custom", "--no-owner", "--no-privileges", f"--file={path}")
    with path.open("rb") as file:
        os.fsync(file.fileno())  # neither program syncs
    return revision


def check_free(url: str) -> None:
    """Raises BackupError if the database has tables already."""
    parsed = make_url(url)
    if _is_sqlite(parsed):
        if _file(parsed).exists():
            raise BackupError(f"{_file(parsed)} exists already; stop the service and move it away")
        return
    engine = make_engine(url)
    try:
        tables = inspect(engine).get_table_names()
    except SQLAlchemyError as error:
        raise BackupError(f"{_shown(url)}: {str(error).splitlines()[0]}") from error
    finally:
        engine.dispose()
    if tables:
        raise BackupError(f"{_shown(url)} has tables already; restore to a new, empty database")


def restore(url: str, path: Path) -> None:
    """Create the database from the file that `save` wrote, all or nothing. Raises BackupError."""
    parsed = make_url(url)
    if _is_sqlite(parsed):
        target = _file(parsed)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.restoring")
        shutil.copyfile(path, partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        for log in ("-wal", "-shm"):
            target.with_name(target.name + log).unlink(missing_ok=True)  # of a previous database
        partial.replace(target)
        return
    # The comments are on extensions, and only the owner of these may set them.
    options = ("--no-owner", "--no-privileges", "--no-comments", "--single-transaction", "--exit-on-error")
    _run("pg_restore", parsed, *options, str(path))


def _revision(url: str) -> str | None:
    parsed = make_url(url)
    if _is_sqlite(parsed) and not _file(parsed).exists():
        return None  # connecting would create it
    engine = make_engine(url)
    try:
        with engine.execution_options(readonly=True).connect() as connection:
            return schema.revision_of(connection)
    except SQLAlchemyError as error:
        raise BackupError(f"{_shown(url)}: {str(error).splitlines()[0]}") from error
    finally:
        engine.dispose()


def _run(program: str, url: URL, *options: str) -> None:
    """Run a PostgreSQL client program. The password is passed in the environment, which other users cannot see."""
    address = url.set(drivername="postgresql", password=None).render_as_string(hide_password=False)
    environment = os.environ | ({"PGPASSWORD": str(url.password)} if url.password else {})
    try:
        subprocess.run(
            [program, f"--dbname={address}", *options],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError as error:
        raise BackupError(f"{program} is not on the PATH; install the PostgreSQL client programs") from error
    except subprocess.CalledProcessError as error:
        raise BackupError(f"{program}: {' '.join(error.stderr.split())[:MAX_ERROR_CHARACTERS]}") from error


def _is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _file(url: URL) -> Path:
    return Path(url.database or "").resolve()


def _shown(url: str) -> str:
    return make_url(url).render_as_string(hide_password=True)
