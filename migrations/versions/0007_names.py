"""Add the name to the list's index, so that a search for part of a name filters rows within the index."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.drop_index("ix_experiments_created", table_name="experiments")
    op.create_index("ix_experiments_created", "experiments", ["owner_id", "created_at", "id", "name"])


def downgrade() -> None:
    op.drop_index("ix_experiments_created", table_name="experiments")
    op.create_index("ix_experiments_created", "experiments", ["owner_id", "created_at", "id"])
