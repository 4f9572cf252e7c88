"""Add what scheduling needs: placement, priority, lab version, due time, and when an owner was last served."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

NEW = ("placement", "priority", "lab_version", "due_at")


def upgrade() -> None:
    with op.batch_alter_table("experiments") as batch_op:
        batch_op.add_column(
            sa.Column("placement", sa.String(length=16), nullable=False, server_default="rather_cpu")
        )
        batch_op.add_column(sa.Column("priority", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("lab_version", sa.Integer(), nullable=False, server_default="1"))
        batch_op.add_column(sa.Column("due_at", sa.DateTime(timezone=True), nullable=True))
    experiments = sa.table(
        "experiments",
        sa.column("placement"),
        sa.column("due_at"),
        sa.column("queued_at"),
        sa.column("dataset"),
        sa.column("model"),
        sa.column("spec", sa.JSON()),
    )
    device = experiments.c.spec["device"].as_string()
    light = (experiments.c.dataset == "digits") & (experiments.c.model == "small_cnn")
    placement = sa.case(
        (device == "cuda", "needs_gpu"), ((device == "cpu") | light, "rather_cpu"), else_="rather_gpu"
    )
    op.execute(experiments.update().values(due_at=experiments.c.queued_at, placement=placement))
    with op.batch_alter_table("experiments") as batch_op:
        batch_op.alter_column("due_at", existing_type=sa.DateTime(timezone=True), nullable=False)
        batch_op.create_index("ix_experiments_turn", ["status", "owner_id", "priority", "queued_at", "id"])
    with op.batch_alter_table("owners") as batch_op:
        batch_op.add_column(sa.Column("served_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("owners") as batch_op:
        batch_op.drop_column("served_at")
    with op.batch_alter_table("experiments") as batch_op:
        batch_op.drop_index("ix_experiments_turn")
        for name in NEW:
            batch_op.drop_column(name)
