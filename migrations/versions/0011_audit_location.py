"""What a request made, in the audit log."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

# Not in a batch: SQLite would copy the table, and lose the triggers that keep its rows.


def upgrade() -> None:
    op.add_column("audit", sa.Column("location", sa.String(length=300), nullable=True))


def downgrade() -> None:
    op.drop_column("audit", "location")
