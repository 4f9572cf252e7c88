"""Database, broker and object store: whether each answers, and is set up as the service's guarantees require."""

from collections.abc import Iterator
from contextlib import closing
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx2
from sqlalchemy import make_url, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.core.broker import CHECKS, INTERACTIVE, Broker
from app.core.database import Database, new_id, utcnow
from app.core.objects import PROBE_PREFIX, Objects, ObjectStoreError
from app.core.security import is_loopback
from app.operations import schema
from app.operations.doctor import findings
from app.operations.doctor.findings import (
    Finding,
    Installation,
    error,
    first_line,
    ok,
    warning,
)
from app.settings import hide_password
from app.specs.placement import KINDS

MAX_CONNECTIONS = 50
"""Of one process, see `app.core.database`."""
NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "9p", "fuse.sshfs", "ceph", "glusterfs", "lustre")
SECONDS = 5
DATABASE_FIX = (
    "start the server, or correct BDLAB_DATABASE_URL (postgresql+psycopg://user:password@host/name)"
)
BROKER_FIX = "start the server, or correct BDLAB_BROKER_URL (redis://:password@host:6379/0)"
OBJECTS_FIX = (
    "correct BDLAB_OBJECTS_URL (s3://bucket/prefix or file:///folder), AWS_ENDPOINT_URL and the AWS keys"
)


def check_database(installation: Installation) -> Iterator[Finding]:
    """Server and schema. Leaves the database open for later checks if the schema is current."""
    url = installation.settings.database
    name = hide_password(url, url.partition("?")[0])
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
        if backend == "sqlite" and not Path(parsed.database or "").exists():
            yield warning(
                "database", f"{parsed.database} does not exist yet", "run bdlab up or bdlab migrate"
            )
            return
        if backend == "postgresql":
            parsed = parsed.update_query_dict({"connect_timeout": str(SECONDS)})
        database = Database(parsed.render_as_string(hide_password=False))
        with database.writing() as session:
            yield from (_check_sqlite if backend == "sqlite" else _check_postgres)(session, name)
        finding = _check_schema(database)
    except (SQLAlchemyError, ImportError) as problem:
        yield error("database", f"{name}: {hide_password(url, first_line(problem))}", DATABASE_FIX)
        return
    yield finding
    if finding.state == "ok":
        installation.database = database


def _check_sqlite(session: Session, name: str) -> Iterator[Finding]:
    path = Path(session.get_bind().engine.url.database or "").resolve()
    file_system = _file_system_of(path)
    if file_system.startswith(NETWORK_FILE_SYSTEMS) or session.scalar(text("PRAGMA journal_mode")) != "wal":
        detail = f"the write-ahead log of {path} is not reliable on {file_system or 'this file system'}"
        yield error("database", detail, "set BDLAB_HOME to a folder on a local disk, or use PostgreSQL")
    else:
        yield ok("database", f"SQLite, {name}, with a write-ahead log on a local disk")


def _check_postgres(session: Session, name: str) -> Iterator[Finding]:
    def show(setting: str) -> str:
        return str(session.scalar(text(f"SHOW {setting}")))

    yield ok("database", f"PostgreSQL {show('server_version').split()[0]}, {name}")
    if (encoding := show("server_encoding")) != "UTF8":
        yield error("database", f"its encoding is {encoding}", "create it again with ENCODING 'UTF8'")
    if show("fsync") != "on":
        yield error("database", "fsync is off, so a crash of its host can corrupt it", "set fsync = on")
    limit = int(show("max_connections"))
    clients = text("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")
    if (used := session.scalar(clients) or 0) > 0.8 * limit or limit < MAX_CONNECTIONS:
        mend = (
            f"allow {MAX_CONNECTIONS} per API process and a few per worker (max_connections), or use a pooler"
        )
        yield warning("database", f"{used} of {limit} connections are in use", mend)
    yield findings.compare_clock("database", session.scalar(text("SELECT clock_timestamp()")) or utcnow())


def _check_schema(database: Database) -> Finding:
    with database.engine.execution_options(readonly=True).connect() as connection:
        revision = schema.revision_of(connection)
    head = schema.head()
    if revision is None or (revision != head and schema.is_known(revision)):
        detail = f"it is at revision {revision or 'none'}; this version needs {head}"
        return error("schema", detail, "run bdlab migrate")
    if revision != head:
        detail = f"revision {revision} is from a newer version than this one, which needs {head}"
        return error("schema", detail, "update backdoor-lab on this host")
    if differences := schema.differences(database.engine):
        detail = f"the tables differ from revision {head} in {len(differences)} places: {differences[0]}"
        return error("schema", detail, "undo the manual changes, or restore a backup")
    return ok("schema", f"revision {revision}, the newest")


def check_broker(installation: Installation) -> Iterator[Finding]:
    settings, url = installation.settings, installation.settings.broker
    if not settings.broker_url and not installation.is_up:
        yield warning("broker", "the embedded Valkey does not run", "run bdlab up")
        return
    name = hide_password(url, url.partition("?")[0]) if settings.broker_url else "the embedded Valkey"
    try:
        with closing(Broker(url)) as broker:
            pending = [f"{queue} {broker.pending(queue)}" for queue in (*KINDS, INTERACTIVE, CHECKS)]
        info = _server_info(url)
    except Exception as problem:  # an invalid URL raises different exceptions
        mend = BROKER_FIX if settings.broker_url else f"see {settings.home_dir / 'logs' / 'broker.log'}"
        yield error("broker", f"{name}: {hide_password(url, first_line(problem))}", mend)
        return
    yield ok("broker", f"{name}; pending messages: {', '.join(pending)}")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and int(info.get("maxmemory", 0)):
        detail = f"it may evict messages when its memory is full ({policy})"
        yield error("broker", detail, "set maxmemory-policy noeviction")
    if not int(info.get("aof_enabled", 0)):
        detail = "it has no append-only file; messages lost in a restart are late by BDLAB_REPUBLISH_SECONDS"
        yield warning("broker", detail, "set appendonly yes")
    elif info.get("aof_last_write_status") != "ok":
        yield error(
            "broker", "its last write to the append-only file failed", "see its log; is its disk full?"
        )
    parts = urlsplit(url)
    if parts.scheme == "redis" and not parts.password and not is_loopback(parts.hostname or ""):
        detail = f"it has no password: whoever reaches {parts.hostname} can send tasks to the workers"
        yield warning("broker", detail, "set requirepass, unless the network is private to the service")


def _server_info(url: str) -> dict[str, Any]:
    import redis  # noqa: PLC0415  # slow to import, and needed only here

    socket = url.startswith("redis+socket://")
    address = f"unix://{unquote(url.removeprefix('redis+socket://'))}" if socket else url
    with closing(redis.Redis.from_url(address, socket_timeout=SECONDS)) as client:
        info: dict[str, Any] = client.info()
    return info


def check_objects(installation: Installation) -> Iterator[Finding]:
    """Write, read and delete an object, and follow a signed link to it if the store has such links."""
    url, endpoint = installation.settings.objects, installation.settings.objects_public_endpoint
    key, content = f"{PROBE_PREFIX}{new_id()}", b"bdlab doctor"
    try:
        store = Objects(url)
        store.put(key, content)
        try:
            intact = store.get(key) == content
            link = store.signed_url(key, SECONDS, endpoint)
            links = list(_check_link(link, endpoint)) if link else []
        finally:
            store.delete(key)
    except ObjectStoreError as problem:
        yield error("objects", f"{url}: {first_line(problem)}", OBJECTS_FIX)
        return
    if intact:
        yield ok("objects", f"{url}: an object was written, read and deleted")
    else:
        yield error("objects", f"{url} does not return what was written", "use a store with consistent reads")
    yield from links


def _check_link(link: str, endpoint: str) -> Iterator[Finding]:
    mend = f"correct {'BDLAB_OBJECTS_PUBLIC_ENDPOINT' if endpoint else 'AWS_ENDPOINT_URL'}"
    try:
        answer = httpx2.get(link, timeout=SECONDS).raise_for_status()
    except httpx2.HTTPError as problem:
        # Clients may reach a public endpoint that this machine cannot reach.
        state = warning if endpoint else error
        yield state("objects", f"a signed link cannot be opened: {first_line(problem)}", mend)
        return
    yield ok("objects", "signed links work")
    if date := answer.headers.get("date"):
        yield findings.compare_clock("objects", parsedate_to_datetime(date))


def _file_system_of(path: Path) -> str:
    """The type of file system as Linux names it; empty if unknown."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return ""
    return max(((len(m[1]), m[2]) for m in mounts if path.is_relative_to(m[1])), default=(0, ""))[1]
