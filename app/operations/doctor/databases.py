"""The database: there, current, set up as the guarantees need it, and of the same time as this machine."""

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import URL, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.orm import Session

from app.core.database import Database, utcnow
from app.operations import schema
from app.operations.doctor.environment import NETWORK_FILE_SYSTEMS, file_system
from app.operations.doctor.findings import Finding, Patient, error, ok, reason, shown_url, warning

CONNECT_SECONDS = 5
OLDEST_POSTGRES = 14
CONNECTIONS = 50
"""Most connections of one process, see `app.core.database`."""
EXAMPLE = "postgresql+psycopg://user:password@host/database"
MENDS = {
    "password authentication failed": "correct user and password in BDLAB_DATABASE_URL",
    "does not exist": "create it, or correct the name in BDLAB_DATABASE_URL",
    "connection refused": "start PostgreSQL there, or correct host and port in BDLAB_DATABASE_URL",
    "failed to resolve": "correct the host in BDLAB_DATABASE_URL",
    "name or service": "correct the host in BDLAB_DATABASE_URL",
    "timeout": "correct host and port in BDLAB_DATABASE_URL, or open the way there",
    "not a database": "restore a backup, or move the file away for a fresh start",
    "malformed": "restore a backup",
    "locked": "another process holds it for long; see who: fuser -v on the file",
    "readonly": "run this as the user that runs the service",
    "unable to open": "make the folder, or correct BDLAB_DATABASE_URL",
}


def database(patient: Patient) -> Iterator[Finding]:
    """Everything about it; leaves it open for later checks if it has the current schema."""
    url = patient.settings.database
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise ArgumentError(f"{parsed.get_backend_name()} is not supported")
        parsed.get_dialect()
    except (ArgumentError, ImportError) as fault:
        yield error(
            "database", f"{shown_url(url)!r}: {reason(fault, url)}", f"set BDLAB_DATABASE_URL as in {EXAMPLE}"
        )
        return
    local = parsed.get_backend_name() == "sqlite"
    if local and (missing := _absent(parsed.database)):
        yield missing
        return
    try:
        opened = Database(_with_timeout(parsed, local))
        try:
            yield from _look(opened, shown_url(url), local)
            found = list(_schema(opened))
        except BaseException:
            opened.close()
            raise
    except (SQLAlchemyError, OSError, ImportError) as fault:
        why = reason(fault, url)
        mend = next(
            (mend for sign, mend in MENDS.items() if sign in str(fault).lower()), "see docs/deployment.md"
        )
        yield error("database", f"{shown_url(url)}: {why}", mend)
        return
    yield from found
    if all(finding.state == "ok" for finding in found):
        patient.database = opened
    else:
        opened.close()


def _absent(file: str | None) -> Finding | None:
    """What to say of a SQLite file that is not there; opening it would make it."""
    path = Path(file or "")
    if not file or file == ":memory:":
        return error(
            "database", "a database in memory is lost with its process, and no other sees it", "name a file"
        )
    if not path.exists():
        return warning("database", f"{path} is not there yet", "bdlab up, or bdlab migrate, makes it")
    if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK):
        return error("database", f"{path} is not writable", "run this as the user that runs the service")
    return None


def _with_timeout(url: URL, local: bool) -> str:
    if not local and "connect_timeout" not in url.query:
        url = url.update_query_dict({"connect_timeout": str(CONNECT_SECONDS)})
    return url.render_as_string(hide_password=False)


def _look(database: Database, name: str, local: bool) -> Iterator[Finding]:
    began = time.monotonic()
    with database.writing() as session:
        session.execute(text("SELECT 1"))
        took = (time.monotonic() - began) * 1000
        yield from (_sqlite if local else _postgres)(session, f"{name}, {took:.0f} ms")


def _sqlite(session: Session, name: str) -> Iterator[Finding]:
    version = session.scalar(text("SELECT sqlite_version()"))
    yield ok("database", f"SQLite {version}, {name}")
    mode = session.scalar(text("PRAGMA journal_mode"))
    path = Path(make_url(str(session.get_bind().engine.url)).database or "").resolve()
    kind = file_system(path)
    if kind.startswith(NETWORK_FILE_SYSTEMS):
        yield error(
            "database",
            f"{path} lies on {kind}; write-ahead logging needs a local disk",
            "set BDLAB_HOME to a local folder, or use PostgreSQL",
        )
    elif mode != "wal":
        yield error(
            "database", f"the journal is {mode}, not a write-ahead log", "put the file on a local disk"
        )
    else:
        yield ok("database", "write-ahead log, on a local disk")


def _postgres(session: Session, name: str) -> Iterator[Finding]:
    def show(setting: str) -> str:
        return str(session.scalar(text(f"SHOW {setting}")))

    number = int(show("server_version_num")) // 10_000
    found = ok("database", f"PostgreSQL {show('server_version').split()[0]}, {name}")
    if number < OLDEST_POSTGRES:
        found = warning("database", found.detail, f"use PostgreSQL {OLDEST_POSTGRES} or newer")
    yield found
    if show("server_encoding") != "UTF8":
        yield error(
            "database",
            f"its encoding is {show('server_encoding')}",
            "create the database with ENCODING 'UTF8'",
        )
    if show("fsync") != "on":
        yield error("database", "fsync is off: a crash of its machine may ruin it", "set fsync = on")
    most = int(show("max_connections"))
    used = (
        session.scalar(text("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"))
        or 0
    )
    mend = f"set max_connections for {CONNECTIONS} for each API process and a few for each worker, or use a pooler"
    if used > 0.8 * most or most < CONNECTIONS:
        yield warning("database", f"{used} of {most} connections are used", mend)
    else:
        yield ok("database", f"{used} of {most} connections are used")
    yield clock("database", session.scalar(text("SELECT clock_timestamp()")) or utcnow())


def clock(whose: str, there: datetime) -> Finding:
    """What to say of another machine's time. Leases are compared between machines, so they must agree."""
    ahead = (there.astimezone(UTC) - utcnow()).total_seconds()
    detail = f"its clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
    if abs(ahead) < 2:
        return ok(whose, detail)
    return (warning if abs(ahead) < 10 else error)(
        whose, detail, "let both machines follow the same time server (NTP)"
    )


def _schema(database: Database) -> Iterator[Finding]:
    with database.engine.execution_options(readonly=True).connect() as connection:
        there = schema.revision_of(connection)
    wanted = schema.head()
    if there is None:
        yield error("schema", "the database is empty", "bdlab migrate")
    elif there == wanted:
        others = schema.differences(database.engine)
        if others:
            mend = "somebody changed the tables by hand; restore a backup, or undo it"
            yield error(
                "schema",
                f"revision {there}, but {len(others)} things differ from it: {others[0]}"[:300],
                mend,
            )
        else:
            yield ok("schema", f"revision {there}, the newest")
    elif schema.is_known(there):
        yield error("schema", f"revision {there}; this version needs {wanted}", "bdlab migrate")
    else:
        yield error(
            "schema",
            f"revision {there} is of a newer version than this one, whose newest is {wanted}",
            "update backdoor-lab here",
        )
