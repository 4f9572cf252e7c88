"""Add a trigram index on names where PostgreSQL has pg_trgm.

Without the index a search for part of a name reads all names of an owner.
"""

from alembic import op
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

revision = "0015"
down_revision = "0014"

NAME = "ix_experiments_name_parts"  # optional: app.operations.schema ignores whether it exists


def upgrade() -> None:
    connection = op.get_bind()
    if connection.dialect.name != "postgresql":
        return
    if not connection.scalar(text("SELECT 1 FROM pg_available_extensions WHERE name = 'pg_trgm'")):
        return
    try:
        with connection.begin_nested():
            connection.execute(text("CREATE EXTENSION IF NOT EXISTS pg_trgm"))
            op.create_index(
                NAME,
                "experiments",
                ["name"],
                postgresql_using="gin",
                postgresql_ops={"name": "gin_trgm_ops"},
            )
    except DBAPIError:  # only the database's owner may create extensions; searches are merely slower
        return


def downgrade() -> None:
    op.execute(f"DROP INDEX IF EXISTS {NAME}")
