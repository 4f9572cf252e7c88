"""Add sweeps and studies, and the arm keys by which studies reuse existing results."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "sweeps",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("spec", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("owner_id", sa.String(length=36), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["owners.id"], name=op.f("fk_sweeps_owner_id_owners")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sweeps")),
    )
    with op.batch_alter_table("sweeps") as batch_op:
        batch_op.create_index("ix_sweeps_kind_created", ["owner_id", "kind", "created_at", "id"])

    op.create_table(
        "arm_keys",
        sa.Column("experiment_id", sa.String(length=36), nullable=False),
        sa.Column("arm", sa.String(length=64), nullable=False),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment_id"],
            ["experiments.id"],
            name=op.f("fk_arm_keys_experiment_id_experiments"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("experiment_id", "arm", "seed", name=op.f("pk_arm_keys")),
    )
    with op.batch_alter_table("arm_keys") as batch_op:
        batch_op.create_index("ix_arm_keys_key", ["key", "experiment_id"])

    op.create_table(
        "sweep_cells",
        sa.Column("sweep_id", sa.String(length=36), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("coordinates", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.Column("experiment_id", sa.String(length=36), nullable=True),
        sa.Column("arm", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(
            ["experiment_id"],
            ["experiments.id"],
            name=op.f("fk_sweep_cells_experiment_id_experiments"),
            ondelete="SET NULL",
        ),
        sa.ForeignKeyConstraint(
            ["sweep_id"], ["sweeps.id"], name=op.f("fk_sweep_cells_sweep_id_sweeps"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("sweep_id", "number", name=op.f("pk_sweep_cells")),
    )
    with op.batch_alter_table("sweep_cells") as batch_op:
        batch_op.create_index(batch_op.f("ix_sweep_cells_experiment_id"), ["experiment_id"])

    op.create_table(
        "sweep_experiments",
        sa.Column("sweep_id", sa.String(length=36), nullable=False),
        sa.Column("experiment_id", sa.String(length=36), nullable=False),
        sa.Column("made", sa.Boolean(), nullable=False),
        sa.Column("coordinates", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment_id"],
            ["experiments.id"],
            name=op.f("fk_sweep_experiments_experiment_id_experiments"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["sweep_id"], ["sweeps.id"], name=op.f("fk_sweep_experiments_sweep_id_sweeps"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("sweep_id", "experiment_id", name=op.f("pk_sweep_experiments")),
    )
    with op.batch_alter_table("sweep_experiments") as batch_op:
        batch_op.create_index("ix_sweep_experiments_experiment", ["experiment_id", "sweep_id"])


def downgrade() -> None:
    with op.batch_alter_table("sweep_experiments") as batch_op:
        batch_op.drop_index("ix_sweep_experiments_experiment")

    op.drop_table("sweep_experiments")
    with op.batch_alter_table("sweep_cells") as batch_op:
        batch_op.drop_index(batch_op.f("ix_sweep_cells_experiment_id"))

    op.drop_table("sweep_cells")
    with op.batch_alter_table("arm_keys") as batch_op:
        batch_op.drop_index("ix_arm_keys_key")

    op.drop_table("arm_keys")
    with op.batch_alter_table("sweeps") as batch_op:
        batch_op.drop_index("ix_sweeps_kind_created")

    op.drop_table("sweeps")
