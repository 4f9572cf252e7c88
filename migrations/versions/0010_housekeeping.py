"""Add the expiry of artifacts, and the experiment of a stage that only a reproduction uses."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("artifacts", sa.Column("expired_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("artifacts", sa.Column("expired_why", sa.Text(), nullable=True))
    op.add_column("stages", sa.Column("experiment_id", sa.String(length=36), nullable=True))


def downgrade() -> None:
    op.drop_column("stages", "experiment_id")
    op.drop_column("artifacts", "expired_why")
    op.drop_column("artifacts", "expired_at")
