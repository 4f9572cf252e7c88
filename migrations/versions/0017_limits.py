"""Add what is stored of each upload, which is what counts towards its owner's bytes.

A dataset is stored as it was converted, which may be much larger than the file that was sent; a refused upload not at
all.
"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"

uploads = sa.table(
    "uploads",
    sa.column("id", sa.String),
    sa.column("kind", sa.String),
    sa.column("status", sa.String),
    sa.column("size", sa.BigInteger),
    sa.column("facts", sa.JSON),
    sa.column("stored_bytes", sa.BigInteger),
)
LABEL_BYTES = 8


def upgrade() -> None:
    stored = sa.Column("stored_bytes", sa.BigInteger(), server_default="0", nullable=False)
    op.add_column("uploads", stored)
    connection = op.get_bind()
    kept = uploads.update().where(uploads.c.status != "refused")
    connection.execute(kept.values(stored_bytes=uploads.c.size))
    converted = sa.select(uploads.c.id, uploads.c.facts)
    converted = converted.where(uploads.c.kind == "dataset", uploads.c.status == "ready")
    for upload_id, facts in connection.execute(converted).all():
        image = facts["channels"] * facts["height"] * facts["width"]
        size = (image + LABEL_BYTES) * sum(facts["train_counts"] + facts["test_counts"])
        connection.execute(uploads.update().where(uploads.c.id == upload_id).values(stored_bytes=size))


def downgrade() -> None:
    op.drop_column("uploads", "stored_bytes")
