"""Add owners of experiments."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

LISTS = {
    "ix_experiments_created": ["created_at", "id"],
    "ix_experiments_status_created": ["status", "created_at", "id"],
    "ix_experiments_dataset_created": ["dataset", "created_at", "id"],
    "ix_experiments_model_created": ["model", "created_at", "id"],
    "ix_experiments_attack_created": ["attack", "created_at", "id"],
}


def upgrade() -> None:
    owners = op.create_table(
        "owners",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("max_queued", sa.Integer(), nullable=True),
        sa.Column("max_running", sa.Integer(), nullable=True),
        sa.Column("max_device_seconds", sa.BigInteger(), nullable=True),
        sa.Column("max_bytes", sa.BigInteger(), nullable=True),
        sa.Column("max_requests", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_owners")),
        sa.UniqueConstraint("name", name=op.f("uq_owners_name")),
    )
    # Existing rows were created before there were API keys and belong to the local owner. The server default fills
    # them in; it is dropped again below so that new rows must name their owner.
    op.execute(sa.insert(owners).values(id="local", name="local", created_at=sa.func.current_timestamp()))
    with op.batch_alter_table("experiments") as batch_op:
        batch_op.add_column(
            sa.Column("owner_id", sa.String(length=36), nullable=False, server_default="local")
        )
        batch_op.create_foreign_key(op.f("fk_experiments_owner_id_owners"), "owners", ["owner_id"], ["id"])
        for name, columns in LISTS.items():
            batch_op.drop_index(name)
            batch_op.create_index(name, ["owner_id", *columns])
    with op.batch_alter_table("experiments") as batch_op:
        batch_op.alter_column("owner_id", server_default=None)
    with op.batch_alter_table("idempotency") as batch_op:
        batch_op.add_column(
            sa.Column("owner_id", sa.String(length=36), nullable=False, server_default="local")
        )
        batch_op.create_foreign_key(op.f("fk_idempotency_owner_id_owners"), "owners", ["owner_id"], ["id"])
        batch_op.drop_constraint(op.f("pk_idempotency"), type_="primary")
        batch_op.create_primary_key(op.f("pk_idempotency"), ["owner_id", "key"])
    with op.batch_alter_table("idempotency") as batch_op:
        batch_op.alter_column("owner_id", server_default=None)


def downgrade() -> None:
    # Keys were unique across owners before this revision, and two owners may have used the same one since.
    op.execute("DELETE FROM idempotency WHERE owner_id != 'local'")
    with op.batch_alter_table("idempotency") as batch_op:
        batch_op.drop_constraint(op.f("pk_idempotency"), type_="primary")
        batch_op.create_primary_key(op.f("pk_idempotency"), ["key"])
        batch_op.drop_constraint(op.f("fk_idempotency_owner_id_owners"), type_="foreignkey")
        batch_op.drop_column("owner_id")
    with op.batch_alter_table("experiments") as batch_op:
        for name, columns in LISTS.items():
            batch_op.drop_index(name)
            batch_op.create_index(name, columns)
        batch_op.drop_constraint(op.f("fk_experiments_owner_id_owners"), type_="foreignkey")
        batch_op.drop_column("owner_id")
    op.drop_table("owners")
