"""Response of the compare route."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from app.results.numbers.schemas import Aggregate
from app.specs.status import Status


class Compared(BaseModel):
    """One of the compared experiments."""

    id: str
    name: str
    status: Status
    spec_hash: str
    created_at: datetime


class SpecField(BaseModel):
    """One field of the specs."""

    field: str = Field(examples=["defenses.abl.isolation_ratio"])
    values: list[Any] = Field(description="In the order of `experiments`; null if a spec has no such field.")
    same: bool = Field(description="Whether all values are equal.")


class MetricRow(BaseModel):
    """One metric of an arm."""

    metric: str
    values: list[Aggregate | None] = Field(description="In the order of `experiments`.")
    differences: list[Aggregate | None] = Field(
        description="Mean of (this - first) over the seeds that both experiments have, with 95 % Student-t interval; "
        "null for the first experiment, and if there is no common seed."
    )


class ArmComparison(BaseModel):
    """An arm that at least one of the experiments has."""

    arm: str
    metrics: list[MetricRow]


class Curve(BaseModel):
    """A time series of an arm, averaged over its seeds."""

    experiment_id: str
    arm: str
    name: str
    steps: list[int] = Field(description="Epochs, numbered from 1 across all stages of the arm.")
    values: list[float]


class Comparison(BaseModel):
    """Two or more experiments side by side."""

    experiments: list[Compared]
    spec: list[SpecField] = Field(
        description="All fields except name and tags; fields that differ come first."
    )
    arms: list[ArmComparison]
    curves: list[Curve]
