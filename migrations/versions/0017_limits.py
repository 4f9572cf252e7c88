"""Add what is stored of each upload, which counts towards its owner's bytes, and let old audit entries be deleted.

A dataset is stored as it was converted, which may be much larger than the file that was sent; a refused upload not at
all. Audit entries still cannot be changed, and not be deleted while they are younger than 30 days.
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
REFUSAL = "the audit log is append-only; entries of the last 30 days cannot be deleted"
UP_ON_POSTGRESQL = """
DROP TRIGGER audit_append_only ON audit;
CREATE TRIGGER audit_append_only BEFORE UPDATE OR TRUNCATE ON audit FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse();
CREATE TRIGGER audit_keep_recent BEFORE DELETE ON audit
FOR EACH ROW WHEN (OLD.at > now() - interval '30 days') EXECUTE FUNCTION audit_refuse();
"""
DOWN_ON_POSTGRESQL = """
DROP TRIGGER audit_keep_recent ON audit;
DROP TRIGGER audit_append_only ON audit;
CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse();
"""
ON_SQLITE = "CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit {} BEGIN SELECT RAISE(ABORT, '{}'); END"


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
    if connection.dialect.name == "postgresql":
        op.execute(UP_ON_POSTGRESQL)
    else:
        op.execute("DROP TRIGGER audit_no_delete")
        op.execute(ON_SQLITE.format("WHEN OLD.at > datetime('now', '-30 days')", REFUSAL))


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute(DOWN_ON_POSTGRESQL)
    else:
        op.execute("DROP TRIGGER audit_no_delete")
        op.execute(ON_SQLITE.format("", "the audit log is append-only"))
    op.drop_column("uploads", "stored_bytes")
