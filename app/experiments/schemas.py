"""What the experiment routes take and give."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from app.specs.experiment import ExperimentSpec
from app.specs.status import Status
from app.specs.stored import SpecDocument


class Progress(BaseModel):
    """Where a running experiment is."""

    stage: str | None = Field(None, description="Kind of the stage that runs.", examples=["victim"])
    arm: str | None = None
    seed: int | None = None
    epoch: int | None = Field(None, description="Epochs of this stage that are done.")
    epochs: int | None = Field(None, description="Epochs that this stage has.")
    fraction: float = Field(0.0, description="Share of the whole experiment that is done, in [0, 1].")
    seconds_left: float | None = Field(None, description="Estimate; null while nothing is known.")


class AttemptOut(BaseModel):
    """One worker's try."""

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
    """Where the rest of an experiment is."""

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
    coordinates: dict[str, Any] = Field(description="Where in it the experiment lies.")


class ExperimentOut(BaseModel):
    """An experiment and how it stands."""

    id: str
    name: str
    status: Status
    spec: SpecDocument = Field(description="The spec with every default written out.")
    spec_hash: str = Field(description="SHA-256 over all of the spec that decides the numbers.")
    created_at: datetime
    queued_at: datetime = Field(description="When it was last put into the queue.")
    started_at: datetime | None = Field(description="When a worker first took it up.")
    finished_at: datetime | None
    cancel_requested_at: datetime | None
    progress: Progress
    attempts: list[AttemptOut] = Field(
        description="Every try, the oldest first; waits in a row are shown as one."
    )
    attempts_left: int = Field(description="How many more attempts may be lost before it fails.")
    summary: list[ArmSummary]
    error: Failure | None
    sweep: SweepRef | None = Field(None, description="Null if it was submitted by itself.")
    links: Links


class Page(BaseModel):
    """One page of experiments."""

    experiments: list[ExperimentOut]
    next: str | None = Field(description="Link to the next page; null on the last.")


class StageOut(BaseModel):
    """One stage that an experiment is made of."""

    kind: str
    arm: str | None = Field(description="Null for a stage that the arms share.")
    seed: int
    key: str = Field(description="The stage's content-address.")
    cached: bool = Field(description="True if it need not be computed again.")


class Validation(BaseModel):
    """The outcome of a dry run."""

    spec: ExperimentSpec = Field(description="The spec with every default written out.")
    spec_hash: str
    arms: list[str]
    stages: list[StageOut]
    cached: int = Field(description="How many of the stages are cached.")


class EventOut(BaseModel):
    """Something that happened. ``type`` is state, progress, result, warning or artifact."""

    id: int
    at: datetime
    type: str
    data: dict[str, Any]


class Events(BaseModel):
    """Events in order."""

    events: list[EventOut]
    after: int = Field(description="Give this as `after` to read on.")
    finished: bool = Field(description="True if no more will come unless the experiment is retried.")
