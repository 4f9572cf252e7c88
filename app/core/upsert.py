"""INSERT ... ON CONFLICT, in the dialect of the session's database."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.core.database import Base


def upsert(
    session: Session,
    table: type[Base],
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
