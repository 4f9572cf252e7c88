"""The SQL database: engine, sessions, upserts, and column types that behave the same on SQLite and PostgreSQL."""

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from datetime import UTC, datetime
from pathlib import Path
from select import POLLIN, poll
from typing import Any

from pydantic_core import from_json
from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Engine,
    Integer,
    MetaData,
    String,
    create_engine,
    event,
    insert,
    literal,
    make_url,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

from app.core import metrics

Json = JSON().with_variant(JSONB(), "postgresql")
BigId = BigInteger().with_variant(Integer(), "sqlite")
"""An autoincremented key; SQLite increments only a plain INTEGER."""

KINDS = ("begin", "select", "insert", "update", "delete")
"""Kinds of statements that are timed separately. On SQLite, BEGIN waits for other writers."""
DURABLE = "durable"
OWNER, LIMITS = "owner", "limits"
"""Keys of a session's ``info``: the owner whose rows it is restricted to, if any, and this owner's limits."""


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time. SQLite stores no time zone, so it is added on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError("a time needs a time zone")
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
    """The time by this machine's clock: for what people read, and for what this process alone compares."""
    return datetime.now(UTC)


class from_now(FunctionElement[datetime]):  # noqa: N801  (used like a function)
    """An SQL expression for the database's current time plus ``seconds``.

    Leases, claims and due times are written by one machine and read by others, whose clocks may differ by hours.
    """

    type = UtcDateTime()
    inherit_cache = True

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__(literal(round(float(seconds), 3)))


@compiles(from_now, "sqlite")
def _sqlite_from_now(element: from_now, compiler: Any, **options: Any) -> str:
    # With six digits, as SQLAlchemy stores times, because SQLite compares texts.
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', {compiler.process(element.clauses, **options)} || ' seconds')"


@compiles(from_now, "postgresql")
def _postgres_from_now(element: from_now, compiler: Any, **options: Any) -> str:
    # Unlike clock_timestamp() it can be compared by an index, and unlike now() it does not stand still while the
    # transaction waits for a lock.
    seconds = compiler.process(element.clauses, **options)
    return f"(statement_timestamp() + make_interval(secs => {seconds}))"


class casefolded(FunctionElement[str]):  # noqa: N801  (used like a function)
    """A text without differences of case, comparable with Python's ``str.casefold()``."""

    type = String()
    inherit_cache = True


@compiles(casefolded, "sqlite")
def _sqlite_casefolded(element: casefolded, compiler: Any, **options: Any) -> str:
    # A function of each connection: SQLite's own lower() changes ASCII letters only.
    return f"casefolded({compiler.process(element.clauses, **options)})"


@compiles(casefolded, "postgresql")
def _postgres_casefolded(element: casefolded, compiler: Any, **options: Any) -> str:
    return f"replace(lower({compiler.process(element.clauses, **options)}), 'ß', 'ss')"


def database_now(session: Session) -> datetime:
    """The time by the database's clock."""
    return session.scalars(select(from_now())).one()


def write(session: Session, table: type["Base"], rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows without reading keys back, in a third of the time of `Session.add`. Only for tables without owner."""
    if rows:
        session.execute(insert(Base.metadata.tables[table.__tablename__]), rows)


# The API has 40 threads, none of which should wait for a connection.
POOL: dict[str, Any] = {"pool_size": 10, "max_overflow": 40}
# Without these, a call to an unreachable host would wait for the kernel's timeout of a quarter of an hour, which is
# longer than any lease.
TIMEOUTS = {
    "connect_timeout": 10,
    "tcp_user_timeout": 15_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
BUSY_SECONDS = 30.0
"""How long SQLite waits for another writer."""
REQUEST_BUSY_SECONDS = 3.0
"""The same, and the wait for a lock of PostgreSQL, while a client waits: a request has at most three transactions."""
IDLE_SECONDS = 30.0
"""A connection idle for this long is pinged before use, since firewalls drop idle connections."""


def upsert(
    session: Session,
    table: type["Base"],
    rows: Sequence[Mapping[str, Any]],
    index_elements: Sequence[str],
    updates: Callable[[Any], dict[str, Any]] | None = None,
) -> None:
    """Insert ``rows``, all with the same columns; a conflict is a row with equal ``index_elements``.

    ``updates`` maps the columns of the rejected row to what is set in the existing one:
    ``lambda new: {"seconds": DeviceTime.seconds + new.seconds}``. Without it existing rows stay as they are.
    """
    if not rows:
        return
    insert: Any = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    statement = insert(table)
    if updates is None:
        statement = statement.on_conflict_do_nothing(index_elements=index_elements)
    else:
        changes = updates(statement.excluded)
        statement = statement.on_conflict_do_update(index_elements=index_elements, set_=changes)
    session.execute(statement, list(rows))


def after_commit(session: Session, action: Callable[[], None]) -> None:
    """Call ``action`` when the session has committed."""

    def committed(_session: Session) -> None:
        action()

    event.listen(session, "after_commit", committed, once=True)


def parse_stored(text: str) -> Any:
    """The value of a JSON column."""
    try:
        return from_json(text)  # ten times as fast as the standard library
    except ValueError:
        return json.loads(text)  # a message with half of a surrogate pair, from a file name that is not UTF-8


def make_engine(url: str, *, for_requests: bool = False) -> Engine:
    """An engine for ``url``; SQLite gets write-ahead logging, foreign keys, and immediate transactions.

    ``for_requests``: for the API, whose responses confirm what it commits. Commits survive a power cut, and statements
    wait only briefly for a lock.
    """
    engine = (_make_sqlite if url.startswith("sqlite") else _make_postgres)(url, for_requests)
    _measure(engine)
    return engine


def _make_postgres(url: str, for_requests: bool) -> Engine:
    query = make_url(url).query
    timeouts = {name: value for name, value in TIMEOUTS.items() if name not in query}
    engine = create_engine(url, connect_args=timeouts, json_deserializer=parse_stored, **POOL)

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        # A generic plan assumes that every label is rare; for one of a third of 100,000 experiments a list took 140 ms
        # with it instead of 1 ms.
        connection.execute("SET plan_cache_mode = force_custom_plan")
        if for_requests:
            connection.execute(f"SET lock_timeout = {1000 * REQUEST_BUSY_SECONDS:.0f}")
        connection.commit()

    @event.listens_for(engine, "checkin")
    def _note_return(_connection: Any, record: Any) -> None:
        record.info["returned_at"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _check_connection(connection: Any, record: Any, _proxy: Any) -> None:
        # `pool_pre_ping` would cost a round trip for each request. A server that stopped has closed the socket, which
        # the kernel reports as readable without a round trip; the server sends nothing else on an idle connection.
        # Keepalives detect an unreachable host. So only connections idle for long are pinged.
        returned_at = record.info.get("returned_at")
        if returned_at is None or (time.monotonic() - returned_at < IDLE_SECONDS and _is_quiet(connection)):
            return
        try:
            engine.dialect.do_ping(connection)
        except connection.Error as error:
            raise InvalidatePoolError from error

    return engine


def _is_quiet(connection: Any) -> bool:
    """Whether the socket has nothing to read, not even the end of the connection."""
    poller = poll()
    try:
        poller.register(connection.fileno(), POLLIN)
    except connection.Error:
        return False
    return not poller.poll(0)


def _make_sqlite(url: str, for_requests: bool) -> Engine:
    if (path := make_url(url).database) and path != ":memory:":
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    busy_seconds = REQUEST_BUSY_SECONDS if for_requests else BUSY_SECONDS
    arguments = {"timeout": busy_seconds, "check_same_thread": False}
    engine = create_engine(url, connect_args=arguments, json_deserializer=parse_stored, **POOL)

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # BEGIN is sent below
        connection.create_function("casefolded", 1, str.casefold, deterministic=True)
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        # A deferred transaction that reads and then writes fails if another one wrote in between; an immediate one
        # waits for its turn to write. Readers use deferred ones (see `reading`).
        options = connection.get_execution_options()
        deferred = options.get("readonly", False)
        if for_requests and not deferred:
            # In a write-ahead log NORMAL never damages the database, but a power cut may undo the last commits.
            connection.exec_driver_sql(
                f"PRAGMA synchronous={'FULL' if options.get(DURABLE, True) else 'NORMAL'}"
            )
        connection.exec_driver_sql("BEGIN" if deferred else "BEGIN IMMEDIATE")

    return engine


def _measure(engine: Engine) -> None:
    """Time the engine's statements, and count its errors."""

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
    """Creates sessions on one engine."""

    def __init__(self, url: str, *, for_requests: bool = False) -> None:
        self.engine = make_engine(url, for_requests=for_requests)
        self._writer = sessionmaker(self.engine, expire_on_commit=False)
        volatile = self.engine.execution_options(**{DURABLE: False})
        self._volatile_writer = sessionmaker(volatile, expire_on_commit=False)
        readonly = self.engine.execution_options(readonly=True)
        self._streamer = sessionmaker(readonly, expire_on_commit=False)
        if readonly.dialect.name == "postgresql":
            # As at READ COMMITTED, each statement sees what is committed when it begins, but without the round trips of
            # BEGIN and ROLLBACK.
            readonly = readonly.execution_options(isolation_level="AUTOCOMMIT")
        self._reader = sessionmaker(readonly, expire_on_commit=False)
        self._info: dict[str, Any] = {}
        self.whole = self
        """The same database, not restricted to an owner."""

    def of(self, owner_id: str, limits: object = None) -> "Database":
        """The same database restricted to the rows of one owner (`app.tables.owners`); cheap.

        `app.team.quotas` enforces the owner's ``limits``.
        """
        part = copy(self.whole)
        part._info = {OWNER: owner_id, LIMITS: limits}
        return part

    @contextmanager
    def writing(self, *, durable: bool = True) -> Iterator[Session]:
        """A transaction that commits at the end, and rolls back on an exception.

        One that need not be ``durable`` does not wait for the disk if the database serves requests.
        """
        writer = self._writer if durable else self._volatile_writer
        with writer(info=self._info) as session, session.begin():
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session for queries only; it never waits for a writer."""
        with self._reader(info=self._info) as session:
            yield session

    @contextmanager
    def streaming(self) -> Iterator[Session]:
        """`reading` for a query with ``yield_per``, which needs a transaction while it is read."""
        with self._streamer(info=self._info) as session:
            yield session

    def close(self) -> None:
        self.engine.dispose()
