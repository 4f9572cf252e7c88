"""Tables of sweeps and studies, and of the keys by which a study finds existing results."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base, Json, UtcDateTime, new_id
from app.tables.experiments import EXPERIMENT
from app.tables.owners import Owned, owned_index

SWEEP, STUDY = "sweep", "study"


class Sweep(Owned, Base):
    """A request for many experiments. ``kind`` is SWEEP or STUDY; ``spec`` is the request."""

    __tablename__ = "sweeps"
    __table_args__ = (owned_index("ix_sweeps_kind_created", "kind", "created_at", "id"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    kind: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(200))
    spec: Mapped[dict[str, Any]] = mapped_column(Json)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class SweepExperiment(Base):
    """An experiment that a sweep or study uses.

    ``made``: whether it submitted the experiment; otherwise it reuses the results of an earlier one.
    ``coordinates``: the part of its cells' coordinates that all of them share.
    """

    __tablename__ = "sweep_experiments"
    __table_args__ = (Index("ix_sweep_experiments_experiment", "experiment_id", "sweep_id"),)

    sweep_id: Mapped[str] = mapped_column(ForeignKey("sweeps.id", ondelete="CASCADE"), primary_key=True)
    experiment_id: Mapped[str] = mapped_column(ForeignKey(EXPERIMENT, ondelete="CASCADE"), primary_key=True)
    made: Mapped[bool]
    coordinates: Mapped[dict[str, Any]] = mapped_column(Json)


class SweepCell(Base):
    """One cell: a whole experiment of a sweep, or one attack, arm and seed of a study.

    ``coordinates`` are a sweep's overrides by path, or a study's ``attack``, ``arm`` and ``seed``. ``experiment_id`` is
    null after the experiment was deleted. ``arm`` is the name that the arm of a study's cell has in that experiment.
    """

    __tablename__ = "sweep_cells"

    sweep_id: Mapped[str] = mapped_column(ForeignKey("sweeps.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    coordinates: Mapped[dict[str, Any]] = mapped_column(Json)
    experiment_id: Mapped[str | None] = mapped_column(ForeignKey(EXPERIMENT, ondelete="SET NULL"), index=True)
    arm: Mapped[str | None] = mapped_column(String(64))


class ArmKey(Base):
    """The content address of the results of one arm and seed: equal keys mean equal results."""

    __tablename__ = "arm_keys"
    __table_args__ = (Index("ix_arm_keys_key", "key", "experiment_id"),)

    experiment_id: Mapped[str] = mapped_column(ForeignKey(EXPERIMENT, ondelete="CASCADE"), primary_key=True)
    arm: Mapped[str] = mapped_column(String(64), primary_key=True)
    seed: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(64))
