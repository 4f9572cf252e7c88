"""The search index: any field of a spec and any metric can be searched among 100,000 experiments.

Specs repeat each other: all experiments of a sweep over a learning rate share one dataset, one model and one attack. So
each distinct part of a spec is stored once with its fields, and a row of results (one experiment and arm) refers to its
parts. The index is written in the transaction that writes the result, see `app.results.search.indexing`.
"""

from datetime import datetime

from sqlalchemy import Float, ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base, BigId, UtcDateTime
from app.tables.owners import Owned, owned_index

PART = "spec_parts.id"
LONGEST_TEXT = 300


class SpecPart(Base):
    """A part of a spec, such as an attack with all its fields, identified by the hash of its content."""

    __tablename__ = "spec_parts"

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)


class SpecNumber(Base):
    """A numeric field of a part. The index is unique, so that SQLite reads a join in its order without sorting."""

    __tablename__ = "spec_numbers"
    __table_args__ = (Index("ix_spec_numbers_value", "path", "value", "part_id", unique=True),)

    part_id: Mapped[int] = mapped_column(ForeignKey(PART, ondelete="CASCADE"), primary_key=True)
    path: Mapped[str] = mapped_column(String(100), primary_key=True)
    value: Mapped[float] = mapped_column(Float)


class SpecText(Base):
    """Any other field of a part: a text, a boolean, or a list as JSON, truncated to 300 characters."""

    __tablename__ = "spec_texts"
    __table_args__ = (Index("ix_spec_texts_value", "path", "value", "part_id", unique=True),)

    part_id: Mapped[int] = mapped_column(ForeignKey(PART, ondelete="CASCADE"), primary_key=True)
    path: Mapped[str] = mapped_column(String(100), primary_key=True)
    value: Mapped[str] = mapped_column(String(LONGEST_TEXT))


class ResultRow(Owned, Base):
    """One arm of one experiment that has results. Ids increase in the order of the first result."""

    __tablename__ = "result_rows"
    __table_args__ = (
        UniqueConstraint("experiment_id", "arm"),
        owned_index("ix_result_rows_owner", "id"),
        owned_index("ix_result_rows_owner_name", "name", "id"),
        owned_index("ix_result_rows_owner_arm", "arm", "id"),
        owned_index("ix_result_rows_owner_created", "created_at", "id"),
        owned_index("ix_result_rows_owner_dataset", "dataset_id", "id"),
        owned_index("ix_result_rows_owner_model", "model_id", "id"),
        owned_index("ix_result_rows_owner_attack", "attack_id", "id"),
        owned_index("ix_result_rows_owner_training", "training_id", "id"),
        owned_index("ix_result_rows_owner_other", "other_id", "id"),
        owned_index("ix_result_rows_owner_defense", "defense_id", "id"),
        owned_index("ix_result_rows_owner_setting", "setting", "id"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    experiment_id: Mapped[str] = mapped_column(ForeignKey("experiments.id", ondelete="CASCADE"))
    arm: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    seeds: Mapped[int] = mapped_column()
    """Number of seeds with results."""
    setting: Mapped[str] = mapped_column(String(16))
    """Equal for rows that differ only in seeds, labels, and the device that computed them."""
    dataset_id: Mapped[int] = mapped_column(ForeignKey(PART))
    model_id: Mapped[int] = mapped_column(ForeignKey(PART))
    attack_id: Mapped[int] = mapped_column(ForeignKey(PART))
    training_id: Mapped[int] = mapped_column(ForeignKey(PART))
    other_id: Mapped[int] = mapped_column(ForeignKey(PART))
    defense_id: Mapped[int | None] = mapped_column(ForeignKey(PART))


class ResultMean(Base):
    """A metric of a row aggregated over its seeds; there is no entry if no seed has a value."""

    __tablename__ = "result_means"
    __table_args__ = (Index("ix_result_means_value", "metric", "mean", "row_id"),)

    row_id: Mapped[int] = mapped_column(ForeignKey("result_rows.id", ondelete="CASCADE"), primary_key=True)
    metric: Mapped[str] = mapped_column(String(64), primary_key=True)
    mean: Mapped[float] = mapped_column(Float)
    low: Mapped[float | None] = mapped_column(Float)
    high: Mapped[float | None] = mapped_column(Float)
    n: Mapped[int] = mapped_column()
