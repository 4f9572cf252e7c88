"""Requests and responses of the experiment routes."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from app.specs.experiment import ExperimentSpec
from app.specs.status import Status
from app.specs.stored import SpecDocument


class Progress(BaseModel):
    """Where a running experiment is."""

    stage: str | None = Field(None, description="Kind of the current stage.", examples=["victim"])
    arm: str | None = None
    seed: int | None = None
    epoch: int | None = Field(None, description="Completed epochs of this stage.")
    epochs: int | None = Field(None, description="Epochs of this stage.")
    fraction: float = Field(0.0, description="Completed share of the whole experiment, in [0, 1].")
    seconds_left: float | None = Field(None, description="Estimate; null while there is none.")


class AttemptOut(BaseModel):
    """The attempt of one worker."""

    number: int
    worker: str
    started_at: datetime
    finished_at: datetime | None
    outcome: Literal["succeeded", "failed", "canceled", "lost", "waiting"] | None
    reason: str | None


class ArmSummary(BaseModel):
    """Means over the seeds that are done."""

    arm: str
    clean_accuracy: float | None = None
    attack_success_rate: float | None = None


class Failure(BaseModel):
    """Why an experiment failed."""

    reason: str
    attempt: int


class Links(BaseModel):
    """Links to the parts of an experiment."""

    self: str
    results: str
    metrics: str
    events: str
    logs: str
    artifacts: str
    cancel: str
    retry: str
    predict: str


class SweepRef(BaseModel):
    """The sweep or study that submitted an experiment."""

    id: str
    kind: Literal["sweep", "study"]
    coordinates: dict[str, Any] = Field(description="The position of the experiment in it.")


class ExperimentOut(BaseModel):
    """An experiment and its state."""

    id: str
    name: str
    status: Status
    spec: SpecDocument = Field(description="The spec with every default written out.")
    spec_hash: str = Field(description="SHA-256 over every field of the spec that decides the numbers.")
    created_at: datetime
    queued_at: datetime = Field(description="When it was last queued.")
    started_at: datetime | None = Field(description="When a worker first claimed it.")
    finished_at: datetime | None
    cancel_requested_at: datetime | None
    progress: Progress
    attempts: list[AttemptOut] = Field(
        description="Every attempt, oldest first; consecutive waits are shown as one."
    )
    attempts_left: int = Field(description="How many more attempts may be lost before it fails.")
    summary: list[ArmSummary]
    error: Failure | None
    sweep: SweepRef | None = Field(None, description="Null if it belongs to none.")
    links: Links


class Page(BaseModel):
    """One page of experiments."""

    experiments: list[ExperimentOut]
    next: str | None = Field(description="Link to the next page; null on the last.")


class StageOut(BaseModel):
    """One stage of an experiment."""

    kind: str
    arm: str | None = Field(description="Null for a stage that the arms share.")
    seed: int
    key: str = Field(description="The content address of the stage.")
    cached: bool = Field(description="True if it is stored and need not be computed.")


class Validation(BaseModel):
    """The outcome of a dry run."""

    spec: ExperimentSpec = Field(description="The spec with every default written out.")
    spec_hash: str
    arms: list[str]
    stages: list[StageOut]
    cached: int = Field(description="How many of the stages are cached.")


class EventOut(BaseModel):
    """An event. ``type`` is state, progress, result, warning or artifact."""

    id: int
    at: datetime
    type: str
    data: dict[str, Any]


class Events(BaseModel):
    """Events in order."""

    events: list[EventOut]
    after: int = Field(description="The `after` of the next request.")
    finished: bool = Field(description="True if no more events follow unless the experiment is retried.")
