"""The name in the index of the list, so that a search for part of a name reads no rows that do not fit."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.drop_index("ix_experiments_created", table_name="experiments")
    op.create_index("ix_experiments_created", "experiments", ["owner_id", "created_at", "id", "name"])


def downgrade() -> None:
    op.drop_index("ix_experiments_created", table_name="experiments")
    op.create_index("ix_experiments_created", "experiments", ["owner_id", "created_at", "id"])
