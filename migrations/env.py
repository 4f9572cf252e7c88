"""Run revisions on the connection passed by `app.operations.schema`."""

from typing import Any, Literal

from alembic import context
from sqlalchemy import JSON, text

from app.core.database import Base, UtcDateTime

LOCK = 0x6264_6C61_62  # "bdlab" in ASCII; only one process may migrate at a time


def render(kind: str, item: Any, autogen_context: Any) -> str | Literal[False]:
    """Write plain SQLAlchemy types into revisions, so that a change of our own types does not change them."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    if kind == "type" and isinstance(item, JSON):
        autogen_context.imports.add("from sqlalchemy.dialects import postgresql")
        return 'sa.JSON().with_variant(postgresql.JSONB(), "postgresql")'
    return False


connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_as_batch=True,
    compare_type=True,
    render_item=render,
    transaction_per_migration=False,
    transactional_ddl=True,  # on SQLite too: all revisions or none, and a second process waits
)
with context.begin_transaction():
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    context.run_migrations()
