"""What a comparison shows."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from app.results.numbers.schemas import Aggregate
from app.specs.status import Status


class Compared(BaseModel):
    """One of the experiments."""

    id: str
    name: str
    status: Status
    spec_hash: str
    created_at: datetime


class SpecField(BaseModel):
    """A field of the specs, side by side."""

    field: str = Field(examples=["defenses.abl.isolation_ratio"])
    values: list[Any] = Field(
        description="In the order of the experiments; null where a spec has no such field."
    )
    same: bool


class MetricRow(BaseModel):
    """A metric of an arm, side by side."""

    metric: str
    values: list[Aggregate | None] = Field(description="In the order of the experiments.")
    differences: list[Aggregate | None] = Field(
        description="Mean of (this - first) over the seeds that both have, with its 95 % Student-t interval; "
        "null for the first experiment, and where no seed is shared."
    )


class ArmComparison(BaseModel):
    """An arm that at least one of the experiments has."""

    arm: str
    metrics: list[MetricRow]


class Curve(BaseModel):
    """A time series of an arm, as the mean over its seeds."""

    experiment_id: str
    arm: str
    name: str
    steps: list[int] = Field(description="Epochs, counted from 1 over all stages of the arm.")
    values: list[float]


class Comparison(BaseModel):
    """Experiments side by side."""

    experiments: list[Compared]
    spec: list[SpecField] = Field(description="Every field but name and tags; those that differ come first.")
    arms: list[ArmComparison]
    curves: list[Curve]
