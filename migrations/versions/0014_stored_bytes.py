"""Add the stored bytes of each experiment, so that an owner's usage is known without summing over files."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    stored = sa.Column("stored_bytes", sa.BigInteger(), server_default="0", nullable=False)
    op.add_column("experiments", stored)
    op.execute(
        "UPDATE experiments SET stored_bytes = (SELECT coalesce(sum(size), 0) FROM artifacts "
        "WHERE artifacts.experiment_id = experiments.id AND artifacts.expired_at IS NULL)"
    )
    op.create_index("ix_experiments_stored", "experiments", ["owner_id", "stored_bytes"])


def downgrade() -> None:
    op.drop_index("ix_experiments_stored", table_name="experiments")
    with op.batch_alter_table("experiments") as batch_op:
        batch_op.drop_column("stored_bytes")
