"""What the sweep routes take and give; studies share most of it."""

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel, Field

from app.experiments.schemas import ArmSummary
from app.specs.status import Status
from app.specs.sweep import SweepSpec

Retryable = Literal["failed", "canceled"]
RetryStates = Annotated[
    list[Retryable] | None,
    Query(
        description="Which to queue again; may be repeated. By default those that failed",
        examples=[["failed"]],
    ),
]


class Counts(BaseModel):
    """How many experiments are in each state."""

    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    canceled: int = 0


class Standing(BaseModel):
    """How the experiments of a sweep or study stand, taken together."""

    status: Status = Field(
        description="`running` while some have begun and some have not ended; once all have ended `failed` if one "
        "failed, else `canceled` if one was, else `succeeded`."
    )
    fraction: float = Field(description="Share of the work that is done, every experiment counted alike.")
    experiments: Counts


class Links(BaseModel):
    """Where the rest is."""

    self: str
    cells: str
    experiments: str
    cancel: str
    retry: str


class SweepSummary(Standing):
    """A sweep as lists show it."""

    id: str
    name: str
    created_at: datetime
    cells: int = Field(description="How many cells it has.")
    missing: int = Field(description="How many of them have no experiment any more, because it was deleted.")
    links: Links


class SweepOut(SweepSummary):
    """A sweep and how it stands."""

    spec: SweepSpec = Field(description="The request.")


class SweepPage(BaseModel):
    """One page of sweeps."""

    sweeps: list[SweepSummary]
    next: str | None = Field(description="Link to the next page; null on the last.")


class CellOut(BaseModel):
    """One cell of a sweep."""

    number: int
    coordinates: dict[str, Any] = Field(description="The overrides that make the cell, by path.")
    status: Status | Literal["missing"] = Field(description="`missing`: its experiment was deleted.")
    fraction: float
    experiment_id: str | None
    summary: list[ArmSummary] = Field(description="Means over the seeds that are done.")


class CellPage(BaseModel):
    """One page of cells."""

    cells: list[CellOut]
    next: str | None = Field(description="Link to the next page; null on the last.")


class SweepValidation(BaseModel):
    """The outcome of a dry run."""

    cells: int
    models: int = Field(description="Trained models to measure: arms x seeds, over all cells.")
    stages: int = Field(description="Different stages that all cells together are made of.")
    cached: int = Field(description="How many of them need not be computed again.")
