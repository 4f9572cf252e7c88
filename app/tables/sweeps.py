"""Tables of sweeps and studies, and of what lets a study find numbers that are already there."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base, Json, UtcDateTime, new_id
from app.tables.experiments import EXPERIMENT
from app.tables.owners import Owned, owned_index

SWEEP, STUDY = "sweep", "study"


class Sweep(Owned, Base):
    """A sweep, or a study: a request that stands for many experiments. ``spec`` is the request."""

    __tablename__ = "sweeps"
    __table_args__ = (owned_index("ix_sweeps_kind_created", "kind", "created_at", "id"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    kind: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(200))
    spec: Mapped[dict[str, Any]] = mapped_column(Json)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class SweepExperiment(Base):
    """An experiment that a sweep uses. ``made``: it submitted it; otherwise it found it done.

    ``coordinates`` say where in the sweep the whole experiment lies.
    """

    __tablename__ = "sweep_experiments"
    __table_args__ = (Index("ix_sweep_experiments_experiment", "experiment_id", "sweep_id"),)

    sweep_id: Mapped[str] = mapped_column(ForeignKey("sweeps.id", ondelete="CASCADE"), primary_key=True)
    experiment_id: Mapped[str] = mapped_column(ForeignKey(EXPERIMENT, ondelete="CASCADE"), primary_key=True)
    made: Mapped[bool]
    coordinates: Mapped[dict[str, Any]] = mapped_column(Json)


class SweepCell(Base):
    """One cell: a whole experiment of a sweep, or one arm and seed of a study.

    ``experiment_id`` is null once the experiment was deleted. ``arm`` is the arm's name in that experiment.
    """

    __tablename__ = "sweep_cells"

    sweep_id: Mapped[str] = mapped_column(ForeignKey("sweeps.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    coordinates: Mapped[dict[str, Any]] = mapped_column(Json)
    experiment_id: Mapped[str | None] = mapped_column(ForeignKey(EXPERIMENT, ondelete="SET NULL"), index=True)
    arm: Mapped[str | None] = mapped_column(String(64))


class ArmKey(Base):
    """The content-address of the numbers of one arm and seed: equal keys, equal numbers."""

    __tablename__ = "arm_keys"
    __table_args__ = (Index("ix_arm_keys_key", "key", "experiment_id"),)

    experiment_id: Mapped[str] = mapped_column(ForeignKey(EXPERIMENT, ondelete="CASCADE"), primary_key=True)
    arm: Mapped[str] = mapped_column(String(64), primary_key=True)
    seed: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(64))
