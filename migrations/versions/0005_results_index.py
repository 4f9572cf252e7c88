"""An index to search results by, the leaderboard, and reproductions."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.orm import Session

from app.results.search.indexing import fill

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "spec_parts",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_spec_parts")),
        sa.UniqueConstraint("digest", name=op.f("uq_spec_parts_digest")),
    )
    op.create_table(
        "leaderboard_settings",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("setting", sa.String(length=16), nullable=False),
        sa.Column("dataset", sa.String(length=80), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("attack", sa.String(length=64), nullable=False),
        sa.Column("defense", sa.String(length=64), nullable=False),
        sa.Column("poisoning_rate", sa.Float(), nullable=True),
        sa.Column("seeds", sa.Integer(), nullable=False),
        sa.Column("owner_id", sa.String(length=36), nullable=False),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["owners.id"], name=op.f("fk_leaderboard_settings_owner_id_owners")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_leaderboard_settings")),
        sa.UniqueConstraint("owner_id", "setting", name=op.f("uq_leaderboard_settings_owner_id_setting")),
    )
    with op.batch_alter_table("leaderboard_settings") as batch_op:
        batch_op.create_index(
            "ix_leaderboard_settings_pair",
            ["owner_id", "dataset", "model", "attack", "defense", "seeds", "id"],
        )
        batch_op.create_index(
            "ix_leaderboard_settings_rate",
            ["owner_id", "dataset", "model", "attack", "defense", "poisoning_rate", "seeds", "id"],
        )

    op.create_table(
        "spec_numbers",
        sa.Column("part_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("path", sa.String(length=100), nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["part_id"],
            ["spec_parts.id"],
            name=op.f("fk_spec_numbers_part_id_spec_parts"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("part_id", "path", name=op.f("pk_spec_numbers")),
    )
    with op.batch_alter_table("spec_numbers") as batch_op:
        batch_op.create_index("ix_spec_numbers_value", ["path", "value", "part_id"], unique=True)

    op.create_table(
        "spec_texts",
        sa.Column("part_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("path", sa.String(length=100), nullable=False),
        sa.Column("value", sa.String(length=300), nullable=False),
        sa.ForeignKeyConstraint(
            ["part_id"], ["spec_parts.id"], name=op.f("fk_spec_texts_part_id_spec_parts"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("part_id", "path", name=op.f("pk_spec_texts")),
    )
    with op.batch_alter_table("spec_texts") as batch_op:
        batch_op.create_index("ix_spec_texts_value", ["path", "value", "part_id"], unique=True)

    op.create_table(
        "leaderboard_values",
        sa.Column("setting_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("experiment_id", sa.String(length=36), nullable=False),
        sa.Column("arm", sa.String(length=64), nullable=False),
        sa.Column("clean_accuracy", sa.Float(), nullable=True),
        sa.Column("attack_success_rate", sa.Float(), nullable=True),
        sa.Column("defense_effectiveness", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(
            ["experiment_id"],
            ["experiments.id"],
            name=op.f("fk_leaderboard_values_experiment_id_experiments"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["setting_id"],
            ["leaderboard_settings.id"],
            name=op.f("fk_leaderboard_values_setting_id_leaderboard_settings"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("setting_id", "seed", name=op.f("pk_leaderboard_values")),
    )
    with op.batch_alter_table("leaderboard_values") as batch_op:
        batch_op.create_index(batch_op.f("ix_leaderboard_values_experiment_id"), ["experiment_id"])

    op.create_table(
        "reproductions",
        sa.Column("experiment_id", sa.String(length=36), nullable=False),
        sa.Column("original_id", sa.String(length=36), nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment_id"],
            ["experiments.id"],
            name=op.f("fk_reproductions_experiment_id_experiments"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("experiment_id", name=op.f("pk_reproductions")),
    )
    with op.batch_alter_table("reproductions") as batch_op:
        batch_op.create_index(batch_op.f("ix_reproductions_original_id"), ["original_id"])

    op.create_table(
        "result_rows",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("experiment_id", sa.String(length=36), nullable=False),
        sa.Column("arm", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seeds", sa.Integer(), nullable=False),
        sa.Column("setting", sa.String(length=16), nullable=False),
        sa.Column("dataset_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("model_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("attack_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("training_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("other_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("defense_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("owner_id", sa.String(length=36), nullable=False),
        sa.ForeignKeyConstraint(
            ["attack_id"], ["spec_parts.id"], name=op.f("fk_result_rows_attack_id_spec_parts")
        ),
        sa.ForeignKeyConstraint(
            ["dataset_id"], ["spec_parts.id"], name=op.f("fk_result_rows_dataset_id_spec_parts")
        ),
        sa.ForeignKeyConstraint(
            ["defense_id"], ["spec_parts.id"], name=op.f("fk_result_rows_defense_id_spec_parts")
        ),
        sa.ForeignKeyConstraint(
            ["experiment_id"],
            ["experiments.id"],
            name=op.f("fk_result_rows_experiment_id_experiments"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["model_id"], ["spec_parts.id"], name=op.f("fk_result_rows_model_id_spec_parts")
        ),
        sa.ForeignKeyConstraint(
            ["other_id"], ["spec_parts.id"], name=op.f("fk_result_rows_other_id_spec_parts")
        ),
        sa.ForeignKeyConstraint(["owner_id"], ["owners.id"], name=op.f("fk_result_rows_owner_id_owners")),
        sa.ForeignKeyConstraint(
            ["training_id"], ["spec_parts.id"], name=op.f("fk_result_rows_training_id_spec_parts")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_result_rows")),
        sa.UniqueConstraint("experiment_id", "arm", name=op.f("uq_result_rows_experiment_id_arm")),
    )
    with op.batch_alter_table("result_rows") as batch_op:
        batch_op.create_index("ix_result_rows_owner_attack", ["owner_id", "attack_id", "id"])
        batch_op.create_index("ix_result_rows_owner_dataset", ["owner_id", "dataset_id", "id"])
        batch_op.create_index("ix_result_rows_owner_defense", ["owner_id", "defense_id", "id"])
        batch_op.create_index("ix_result_rows_owner_model", ["owner_id", "model_id", "id"])
        batch_op.create_index("ix_result_rows_owner_other", ["owner_id", "other_id", "id"])
        batch_op.create_index("ix_result_rows_owner", ["owner_id", "id"])
        batch_op.create_index("ix_result_rows_owner_arm", ["owner_id", "arm", "id"])
        batch_op.create_index("ix_result_rows_owner_created", ["owner_id", "created_at", "id"])
        batch_op.create_index("ix_result_rows_owner_name", ["owner_id", "name", "id"])
        batch_op.create_index("ix_result_rows_owner_setting", ["owner_id", "setting", "id"])
        batch_op.create_index("ix_result_rows_owner_training", ["owner_id", "training_id", "id"])

    op.create_table(
        "result_means",
        sa.Column("row_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("metric", sa.String(length=64), nullable=False),
        sa.Column("mean", sa.Float(), nullable=False),
        sa.Column("low", sa.Float(), nullable=True),
        sa.Column("high", sa.Float(), nullable=True),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["row_id"],
            ["result_rows.id"],
            name=op.f("fk_result_means_row_id_result_rows"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("row_id", "metric", name=op.f("pk_result_means")),
    )
    with op.batch_alter_table("result_means") as batch_op:
        batch_op.create_index("ix_result_means_value", ["metric", "mean", "row_id"])

    # Results that are there already. A later revision that changes these tables must take this over, because the
    # code that fills them is the newest.
    with Session(op.get_bind()) as session:
        fill(session)
        session.flush()


TABLES = (
    "result_means",
    "result_rows",
    "reproductions",
    "leaderboard_values",
    "spec_texts",
    "spec_numbers",
    "leaderboard_settings",
    "spec_parts",
)


def downgrade() -> None:
    for table in TABLES:
        op.drop_table(table)
