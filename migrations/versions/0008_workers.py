"""Add device kind, memory, state and versions to workers."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"

NEW = ("device_kind", "memory", "state", "version", "lab_version")


def upgrade() -> None:
    json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
    with op.batch_alter_table("workers") as batch_op:
        batch_op.add_column(
            sa.Column("device_kind", sa.String(length=8), nullable=False, server_default="cpu")
        )
        batch_op.add_column(sa.Column("memory", json, nullable=False, server_default="{}"))
        batch_op.add_column(sa.Column("state", sa.String(length=16), nullable=False, server_default="idle"))
        batch_op.add_column(sa.Column("version", sa.String(length=64), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("lab_version", sa.Integer(), nullable=False, server_default="1"))


def downgrade() -> None:
    with op.batch_alter_table("workers") as batch_op:
        for name in NEW:
            batch_op.drop_column(name)
