"""Add the request and trace of experiments and uploads, and counters shared between processes."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    for table in ("experiments", "uploads"):
        op.add_column(table, sa.Column("request_id", sa.String(length=64), nullable=True))
        op.add_column(table, sa.Column("traceparent", sa.String(length=64), nullable=True))
    op.create_table(
        "tallies",
        sa.Column("sample", sa.String(length=100), nullable=False),
        sa.Column("labels", sa.String(length=300), nullable=False),
        sa.Column("shard", sa.Integer(), nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("sample", "labels", "shard", name=op.f("pk_tallies")),
    )


def downgrade() -> None:
    op.drop_table("tallies")
    for table in ("uploads", "experiments"):
        with op.batch_alter_table(table) as batch_op:
            batch_op.drop_column("traceparent")
            batch_op.drop_column("request_id")
