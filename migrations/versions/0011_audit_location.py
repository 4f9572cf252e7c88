"""Add the location of the created resource to the audit log."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

# Not in batch mode: on SQLite it copies the table, which would lose the triggers that make it append-only.


def upgrade() -> None:
    op.add_column("audit", sa.Column("location", sa.String(length=300), nullable=True))


def downgrade() -> None:
    op.drop_column("audit", "location")
