"""The index of results: what makes any field of a spec and any metric findable among 100,000 experiments.

Experiments repeat each other: of a sweep over a defense's learning rate all share one data set, one model, one
attack. So every part of a spec is kept once, with its fields as facts, and a row of results (one experiment, one
arm) only points to its parts. Written in the transaction that writes the result, see `app.results.search.indexing`.
"""

from datetime import datetime

from sqlalchemy import Float, ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base, BigId, UtcDateTime
from app.tables.owners import Owned, owned_index

PART = "spec_parts.id"
LONGEST_TEXT = 300


class SpecPart(Base):
    """A part of a spec, such as an attack with all its fields, by the hash of its content."""

    __tablename__ = "spec_parts"

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)


class SpecNumber(Base):
    """A field of a part that is a number. The index is unique, so SQLite walks a join in its order."""

    __tablename__ = "spec_numbers"
    __table_args__ = (Index("ix_spec_numbers_value", "path", "value", "part_id", unique=True),)

    part_id: Mapped[int] = mapped_column(ForeignKey(PART, ondelete="CASCADE"), primary_key=True)
    path: Mapped[str] = mapped_column(String(100), primary_key=True)
    value: Mapped[float] = mapped_column(Float)


class SpecText(Base):
    """A field of a part that is a text, a boolean or a list (as JSON, cut after 300 characters)."""

    __tablename__ = "spec_texts"
    __table_args__ = (Index("ix_spec_texts_value", "path", "value", "part_id", unique=True),)

    part_id: Mapped[int] = mapped_column(ForeignKey(PART, ondelete="CASCADE"), primary_key=True)
    path: Mapped[str] = mapped_column(String(100), primary_key=True)
    value: Mapped[str] = mapped_column(String(LONGEST_TEXT))


class ResultRow(Owned, Base):
    """One arm of one experiment that has results. Rows are numbered in the order of their first result."""

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
    """How many seeds have numbers."""
    setting: Mapped[str] = mapped_column(String(16))
    """Equal for rows that differ in nothing but seed, names and where they were computed."""
    dataset_id: Mapped[int] = mapped_column(ForeignKey(PART))
    model_id: Mapped[int] = mapped_column(ForeignKey(PART))
    attack_id: Mapped[int] = mapped_column(ForeignKey(PART))
    training_id: Mapped[int] = mapped_column(ForeignKey(PART))
    other_id: Mapped[int] = mapped_column(ForeignKey(PART))
    defense_id: Mapped[int | None] = mapped_column(ForeignKey(PART))


class ResultMean(Base):
    """A metric of a row over its seeds; no row where no seed has a value."""

    __tablename__ = "result_means"
    __table_args__ = (Index("ix_result_means_value", "metric", "mean", "row_id"),)

    row_id: Mapped[int] = mapped_column(ForeignKey("result_rows.id", ondelete="CASCADE"), primary_key=True)
    metric: Mapped[str] = mapped_column(String(64), primary_key=True)
    mean: Mapped[float] = mapped_column(Float)
    low: Mapped[float | None] = mapped_column(Float)
    high: Mapped[float | None] = mapped_column(Float)
    n: Mapped[int] = mapped_column()
