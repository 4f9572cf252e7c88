"""How SQLite answers a query."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session

from app.core.security import LOCAL
from tests.app.conftest import Service


def explained(service: Service, ask: Callable[[Session], Any], number: int = -1) -> list[str]:
    """The steps of SQLite's plan for the last statement that ``ask`` sends, or that of this ``number``."""
    database = service.database.of(LOCAL)
    statements: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        statements.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        with database.reading() as session:
            ask(session)
            statement, parameters = statements[number]
            rows = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
    finally:
        event.remove(database.engine, "before_cursor_execute", note)
    return [row[3] for row in rows]
