"""Add the results index, the leaderboard and reproductions, and index existing results.

The indexing code is a copy of the application's at that time: it must keep working on the schema of this revision.
"""

import hashlib
import json
import math
import statistics
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
CLEAN, UNDEFENDED = "clean", "undefended"
EFFECTIVENESS = "defense_effectiveness"
SPEC_PARTS = ("dataset", "model", "attack", "training")
NOT_INDEXED = ("name", "tags", "priority", "seeds", "defenses")
T_QUANTILES = (
    12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139,
    2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922, 2.093024, 2.085963,
    2.079614, 2.073873, 2.068658, 2.063899, 2.059539, 2.055529, 2.051831, 2.048407, 2.045230, 2.042272,
    2.039513, 2.036933, 2.034515, 2.032245, 2.030108, 2.028094, 2.026192, 2.024394, 2.022691, 2.021075,
    2.019541, 2.018082, 2.016692, 2.015368, 2.014103, 2.012896, 2.011741, 2.010635, 2.009575,
)  # fmt: skip
"""97.5 % quantiles of Student's t distribution for 1 to 49 degrees of freedom: an experiment has at most 50 seeds."""

Numbers = Mapping[int, dict[str, float | None]]
"""Metrics by seed."""


def upgrade() -> None:
    op.create_table(
        "spec_parts",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_spec_parts")),
        sa.UniqueConstraint("digest", name=op.f("uq_spec_parts_digest")),
    )
    op.create_table(
        "leaderboard_settings",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
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
        sa.Column("part_id", BIG_ID, nullable=False),
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
        sa.Column("part_id", BIG_ID, nullable=False),
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
        sa.Column("setting_id", BIG_ID, nullable=False),
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
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("experiment_id", sa.String(length=36), nullable=False),
        sa.Column("arm", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seeds", sa.Integer(), nullable=False),
        sa.Column("setting", sa.String(length=16), nullable=False),
        *(sa.Column(f"{part}_id", BIG_ID, nullable=False) for part in (*SPEC_PARTS, "other")),
        sa.Column("defense_id", BIG_ID, nullable=True),
        sa.Column("owner_id", sa.String(length=36), nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment_id"],
            ["experiments.id"],
            name=op.f("fk_result_rows_experiment_id_experiments"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["owner_id"], ["owners.id"], name=op.f("fk_result_rows_owner_id_owners")),
        *(
            sa.ForeignKeyConstraint(
                [f"{part}_id"], ["spec_parts.id"], name=op.f(f"fk_result_rows_{part}_id_spec_parts")
            )
            for part in (*SPEC_PARTS, "other", "defense")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_result_rows")),
        sa.UniqueConstraint("experiment_id", "arm", name=op.f("uq_result_rows_experiment_id_arm")),
    )
    with op.batch_alter_table("result_rows") as batch_op:
        for part in (*SPEC_PARTS, "other", "defense"):
            batch_op.create_index(f"ix_result_rows_owner_{part}", ["owner_id", f"{part}_id", "id"])
        batch_op.create_index("ix_result_rows_owner", ["owner_id", "id"])
        batch_op.create_index("ix_result_rows_owner_arm", ["owner_id", "arm", "id"])
        batch_op.create_index("ix_result_rows_owner_created", ["owner_id", "created_at", "id"])
        batch_op.create_index("ix_result_rows_owner_name", ["owner_id", "name", "id"])
        batch_op.create_index("ix_result_rows_owner_setting", ["owner_id", "setting", "id"])

    op.create_table(
        "result_means",
        sa.Column("row_id", BIG_ID, nullable=False),
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

    _index_existing_results(op.get_bind())


def _index_existing_results(connection: sa.Connection) -> None:
    metadata = sa.MetaData()
    metadata.reflect(connection)
    experiments, values = metadata.tables["experiments"], metadata.tables["result_values"]
    # Ids sort by age, so the newest experiment of a leaderboard setting is written last and wins.
    ids = sa.select(values.c.experiment_id).distinct().order_by(values.c.experiment_id)
    for experiment_id in connection.scalars(ids).all():
        query = sa.select(experiments).where(experiments.c.id == experiment_id)
        experiment = connection.execute(query).mappings().one()
        numbers: dict[str, dict[int, dict[str, float | None]]] = {}
        for value in connection.execute(sa.select(values).where(values.c.experiment_id == experiment_id)):
            numbers.setdefault(value.arm, {}).setdefault(value.seed, {})[value.metric] = value.value
        for arm in _arms(experiment["spec"]):
            if arm in numbers:
                _index_arm(connection, metadata, experiment, arm, numbers)
    settings, ranked = metadata.tables["leaderboard_settings"], metadata.tables["leaderboard_values"]
    count = sa.select(sa.func.count()).where(ranked.c.setting_id == settings.c.id).scalar_subquery()
    connection.execute(settings.update().values(seeds=count))


def _index_arm(
    connection: sa.Connection,
    metadata: sa.MetaData,
    experiment: Mapping[str, Any],
    arm: str,
    by_arm: Mapping[str, Numbers],
) -> None:
    spec, tables, numbers = experiment["spec"], metadata.tables, by_arm[arm]
    defense = next((d for d in spec["defenses"] if (d["arm"] or d["name"]) == arm), None)
    if defense is not None:
        for seed, metrics in numbers.items():
            metrics[EFFECTIVENESS] = _effectiveness(by_arm.get(UNDEFENDED, {}).get(seed, {}), metrics)
    other = {key: value for key, value in spec.items() if key not in (*SPEC_PARTS, *NOT_INDEXED)}
    parts = {name: spec[name] for name in SPEC_PARTS} | {"other": other}
    if defense is not None:
        parts["defense"] = defense
    setting = _setting(parts, arm)
    row = {name: experiment[name] for name in ("owner_id", "name", "created_at")}
    row |= {"experiment_id": experiment["id"], "arm": arm, "seeds": len(numbers), "setting": setting}
    row |= {f"{name}_id": _part_id(connection, metadata, name, fields) for name, fields in parts.items()}
    (row_id,) = connection.execute(tables["result_rows"].insert().values(**row)).inserted_primary_key
    for metric in {name for metrics in numbers.values() for name in metrics}:
        observed = [v for metrics in numbers.values() if (v := metrics.get(metric)) is not None]
        if observed:
            mean = {"row_id": row_id, "metric": metric, **_summary(observed)}
            connection.execute(tables["result_means"].insert().values(**mean))

    settings, ranked = tables["leaderboard_settings"], tables["leaderboard_values"]
    same = sa.and_(settings.c.owner_id == row["owner_id"], settings.c.setting == setting)
    setting_id = connection.scalar(sa.select(settings.c.id).where(same))
    if setting_id is None:
        dataset, attack = spec["dataset"], {"name": "none"} if arm == CLEAN else spec["attack"]
        key = dataset.get("key") or dataset.get("dataset_id")
        values = {"owner_id": row["owner_id"], "setting": setting, "seeds": 0}
        values |= {"dataset": f"{dataset['name']}/{key}" if key else dataset["name"]}
        values |= {"model": spec["model"]["name"], "defense": defense["name"] if defense else arm}
        values |= {"attack": attack["name"], "poisoning_rate": attack.get("poisoning_rate")}
        (setting_id,) = connection.execute(settings.insert().values(**values)).inserted_primary_key
    connection.execute(ranked.delete().where(ranked.c.setting_id == setting_id, ranked.c.seed.in_(numbers)))
    for seed, metrics in numbers.items():
        names = ("clean_accuracy", "attack_success_rate", EFFECTIVENESS)
        values = {"setting_id": setting_id, "seed": seed, "experiment_id": experiment["id"], "arm": arm}
        connection.execute(ranked.insert().values(**values, **{name: metrics.get(name) for name in names}))


def _part_id(connection: sa.Connection, metadata: sa.MetaData, name: str, fields: dict[str, Any]) -> int:
    parts, digest = metadata.tables["spec_parts"], _digest([name, fields])
    part_id: int | None = connection.scalar(sa.select(parts.c.id).where(parts.c.digest == digest))
    if part_id is not None:
        return part_id
    (part_id,) = connection.execute(parts.insert().values(digest=digest)).inserted_primary_key
    for path, value in _flatten("" if name == "other" else f"{name}.", fields):
        table = "spec_texts" if isinstance(value, str) else "spec_numbers"
        connection.execute(metadata.tables[table].insert().values(part_id=part_id, path=path, value=value))
    return part_id


def _flatten(prefix: str, fields: dict[str, Any]) -> list[tuple[str, float | str]]:
    flat: list[tuple[str, float | str]] = []
    for name, value in fields.items():
        if isinstance(value, dict):
            flat += _flatten(f"{prefix}{name}.", value)
        elif isinstance(value, bool):
            flat.append((f"{prefix}{name}", str(value).lower()))
        elif isinstance(value, int | float):
            flat.append((f"{prefix}{name}", float(value)))
        elif value is not None:
            flat.append((f"{prefix}{name}", (value if isinstance(value, str) else _canonical(value))[:300]))
    return flat


def _arms(spec: dict[str, Any]) -> list[str]:
    attacked = spec["attack"]["name"] != "none"
    first = [CLEAN] if spec["reference"] or not attacked else []
    return [*first, *([UNDEFENDED] if attacked else []), *(d["arm"] or d["name"] for d in spec["defenses"])]


def _setting(parts: dict[str, dict[str, Any]], arm: str) -> str:
    """A digest of everything that determines the arm's numbers, except the seed."""
    ignored = {"attack": ("export", "preset"), "defense": ("arm", "preset"), "other": ("reference", "device")}
    relevant = {
        name: {key: value for key, value in fields.items() if key not in ignored.get(name, ())}
        for name, fields in parts.items()
    }
    if arm == CLEAN:
        relevant["attack"] = {}
    return _digest(["" if "defense" in parts else arm, relevant])[:16]


def _effectiveness(before: Mapping[str, float | None], after: Mapping[str, float | None]) -> float | None:
    pairs = [(before.get(name), after.get(name)) for name in ("attack_success_rate", "clean_accuracy")]
    attack, clean = (None if None in pair else max(0.0, pair[0] - pair[1]) for pair in pairs)
    return None if attack is None or clean is None else (attack - clean + 1) / 2


def _summary(values: list[float]) -> dict[str, float | int | None]:
    mean, n = statistics.fmean(values), len(values)
    if n == 1:
        return {"mean": mean, "low": None, "high": None, "n": 1}
    half = T_QUANTILES[n - 2] * statistics.stdev(values) / math.sqrt(n)
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _digest(value: Any) -> str:
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def downgrade() -> None:
    op.drop_table("result_means")
    op.drop_table("result_rows")
    op.drop_table("reproductions")
    op.drop_table("leaderboard_values")
    op.drop_table("spec_texts")
    op.drop_table("spec_numbers")
    op.drop_table("leaderboard_settings")
    op.drop_table("spec_parts")
