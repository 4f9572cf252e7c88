"""Add the planned stages of experiments.

Experiments that exist keep null: their stages are planned when somebody asks.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
    op.add_column("experiments", sa.Column("stages", json, nullable=True))


def downgrade() -> None:
    op.drop_column("experiments", "stages")
