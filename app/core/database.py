"""The SQL database: one engine, one session factory, column types that behave alike on every back end."""

import os
import select
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Engine,
    Integer,
    MetaData,
    create_engine,
    event,
    insert,
    make_url,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.types import TypeDecorator

from app.core import metrics

Json = JSON().with_variant(JSONB(), "postgresql")
BigId = BigInteger().with_variant(Integer(), "sqlite")
"""A key that the database counts up; SQLite does so only for a plain INTEGER."""

KINDS = ("begin", "select", "insert", "update", "delete")
"""Statements that are timed by their kind. On SQLite a BEGIN waits for other writers."""
OWNER, LIMITS = "owner", "limits"
"""Keys of a session's ``info``: the owner whose rows it sees, without whom it sees all, and the owner's limits."""


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time. SQLite keeps no zone, so it is put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError("a time without a zone")
        return value.astimezone(UTC) if value is not None else None

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


class Base(DeclarativeBase):
    """Base of all tables; the naming convention gives every constraint a name that migrations can use."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def new_id() -> str:
    """A UUIDv7 (RFC 9562, section 5.7): 48 bits of milliseconds, then 74 random bits, so ids sort by age."""
    random = int.from_bytes(os.urandom(10))
    value = (
        (time.time_ns() // 1_000_000) << 80
        | 0x7 << 76
        | (random >> 68) << 64
        | 0b10 << 62
        | random & (1 << 62) - 1
    )
    return str(uuid.UUID(int=value))


def utcnow() -> datetime:
    return datetime.now(UTC)


def write(session: Session, table: type["Base"], rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows of a table that has no owner and whose keys nobody asks for: a third of the time of `Session.add`."""
    if rows:
        session.execute(insert(Base.metadata.tables[table.__tablename__]), rows)


# The API serves from 40 threads, and none of them shall wait for a connection.
POOL: dict[str, Any] = {"pool_size": 10, "max_overflow": 40}
# A host that is cut off says nothing. Without these a call would wait for it as long as the kernel does, a quarter of
# an hour, which is longer than any lease.
PATIENCE = {
    "connect_timeout": 10,
    "tcp_user_timeout": 15_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}


IDLE_SECONDS = 30.0
"""A connection that lay in the pool for so long is asked whether it is still good; firewalls forget about it."""


def make_engine(url: str) -> Engine:
    """An engine for ``url``; SQLite gets write-ahead logging, foreign keys, and immediate transactions."""
    engine = _make_sqlite(url) if url.startswith("sqlite") else _make_postgres(url)
    _measure(engine)
    return engine


def _make_postgres(url: str) -> Engine:
    given = make_url(url).query
    patience = {name: value for name, value in PATIENCE.items() if name not in given}
    engine = create_engine(url, connect_args=patience, **POOL)

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        # A plan made once for every value takes a label of a third of all experiments for one of a few: a list of
        # 100,000 took 140 ms with it instead of 1.
        connection.execute("SET plan_cache_mode = force_custom_plan")
        connection.commit()

    @event.listens_for(engine, "checkin")
    def _returned(_connection: Any, record: Any) -> None:
        record.info["returned"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _taken(connection: Any, record: Any, _proxy: Any) -> None:
        # A question to the server before each use would be one more round trip a request. A server that ended,
        # however it did, closed the socket, and that is seen here; nothing else comes on an idle connection. Of a host
        # that is cut off the keepalives tell, after a while.
        returned = record.info.get("returned")
        if returned is None or (time.monotonic() - returned < IDLE_SECONDS and _is_quiet(connection)):
            return
        try:
            engine.dialect.do_ping(connection)
        except connection.Error as error:
            raise InvalidatePoolError from error

    return engine


def _is_quiet(connection: Any) -> bool:
    """Whether nothing came from the server that nobody asked for, as the end of the connection would."""
    look = select.poll()
    try:
        look.register(connection.fileno(), select.POLLIN)
    except connection.Error:
        return False
    return not look.poll(0)


def _make_sqlite(url: str) -> Engine:
    if (path := make_url(url).database) and path != ":memory:":
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": 30, "check_same_thread": False}, **POOL)

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves, below
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=30000"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        # A deferred transaction that reads first and writes later fails at once if another wrote between;
        # an immediate one waits its turn. Readers ask for the deferred kind (see `reading`).
        deferred = connection.get_execution_options().get("readonly", False)
        connection.exec_driver_sql("BEGIN" if deferred else "BEGIN IMMEDIATE")

    return engine


def _measure(engine: Engine) -> None:
    """Count and time what the engine does."""

    @event.listens_for(engine, "before_cursor_execute")
    def _begin(
        _connection: Any, _cursor: Any, _statement: str, _values: Any, context: Any, _many: bool
    ) -> None:
        context.began = time.perf_counter()

    @event.listens_for(engine, "after_cursor_execute")
    def _end(_connection: Any, _cursor: Any, statement: str, _values: Any, context: Any, _many: bool) -> None:
        kind = statement[:6].strip().lower()
        kind = kind if kind in KINDS else "other"
        metrics.DATABASE_SECONDS.labels(kind).observe(time.perf_counter() - context.began)

    @event.listens_for(engine, "handle_error")
    def _failed(context: Any) -> None:
        error = context.sqlalchemy_exception or context.original_exception
        metrics.DATABASE_ERRORS.labels(type(error).__name__).inc()


class Database:
    """Hands out sessions on one engine."""

    def __init__(self, url: str) -> None:
        self.engine = make_engine(url)
        self._writer = sessionmaker(self.engine, expire_on_commit=False)
        readonly = self.engine.execution_options(readonly=True)
        self._streamer = sessionmaker(readonly, expire_on_commit=False)
        if readonly.dialect.name == "postgresql":
            # Each statement sees what is committed when it begins, as in a transaction at READ COMMITTED, but BEGIN
            # and ROLLBACK, two round trips, are saved.
            readonly = readonly.execution_options(isolation_level="AUTOCOMMIT")
        self._reader = sessionmaker(readonly, expire_on_commit=False)
        self._info: dict[str, Any] = {}
        self.whole = self
        """The same database with the rows of all owners."""

    def of(self, owner_id: str, limits: object = None) -> "Database":
        """The same database with the rows of one owner alone, see `app.tables.owners`; costs nothing.

        The owner's ``limits`` are for `app.team.quotas`.
        """
        part = copy(self.whole)
        part._info = {OWNER: owner_id, LIMITS: limits}
        return part

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction that commits at the end, or rolls back on an error."""
        with self._writer(info=self._info) as session, session.begin():
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session for queries alone; it never waits for a writer."""
        with self._reader(info=self._info) as session:
            yield session

    @contextmanager
    def streaming(self) -> Iterator[Session]:
        """The same for a query with ``yield_per``, which needs a transaction as long as it is read."""
        with self._streamer(info=self._info) as session:
            yield session

    def close(self) -> None:
        self.engine.dispose()
