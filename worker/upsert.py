"""INSERT ... ON CONFLICT, which SQLite and PostgreSQL both know."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Session


def insert_into(session: Session, table: type[DeclarativeBase]) -> postgresql.Insert:
    """An INSERT for the session's back end that takes ``on_conflict_do_update`` and ``on_conflict_do_nothing``."""
    if session.get_bind().dialect.name == "sqlite":
        return sqlite.insert(table)  # type: ignore[return-value]  # same methods, no common base
    return postgresql.insert(table)


def upsert(
    session: Session, table: type[DeclarativeBase], rows: list[dict[str, Any]], keys: Sequence[str]
) -> None:
    """Write ``rows``, all with the same columns; a row whose ``keys`` exist is replaced."""
    if not rows:
        return
    statement = insert_into(session, table)
    values = {name: statement.excluded[name] for name in rows[0] if name not in keys}
    session.execute(statement.on_conflict_do_update(index_elements=keys, set_=values), rows)
