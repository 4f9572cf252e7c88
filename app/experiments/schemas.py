"""Requests and responses of the experiment routes."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SkipValidation

from app.specs.experiment import ExperimentSpec
from app.specs.models.base import label_of
from app.specs.status import Status
from app.specs.stored import SpecDocument, StoredSpec, dataset_label


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
    # Taken from the spec, so that lists need not show it. Idempotent answers of earlier versions lack these fields.
    dataset: str = Field(
        default_factory=lambda data: dataset_label(data["spec"]["dataset"]),
        description="Name of the dataset; with the key or id of an imported or uploaded one, as in `imported/KEY`.",
    )
    model: str = Field(
        default_factory=lambda data: label_of(data["spec"]["model"]),
        description="Name of the model; with the architecture of a library's, as in `torchvision/vgg19_bn`.",
    )
    attack: str = Field(
        default_factory=lambda data: StoredSpec(data["spec"]).attack_name, description="Name of the attack."
    )
    defenses: list[str] = Field(
        default_factory=lambda data: [*StoredSpec(data["spec"]).defenses],
        description="Names of the arms of its defenses.",
    )
    tags: dict[str, str] = Field(default_factory=lambda data: StoredSpec(data["spec"]).tags)
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


class ExperimentItem(ExperimentOut):
    """An experiment in a list, with the fields that the request selects."""

    model_config = ConfigDict(json_schema_extra=lambda schema: schema.pop("required"))

    spec: SkipValidation[SpecDocument] = Field(description="The spec with every default written out.")


LIST_FIELDS = frozenset(
    {
        "id",
        "name",
        "status",
        "dataset",
        "model",
        "attack",
        "defenses",
        "tags",
        "created_at",
        "finished_at",
        "progress",
        "summary",
    }
)
"""The fields of an experiment in a list unless the request selects others."""


class Page(BaseModel):
    """One page of experiments."""

    experiments: list[ExperimentItem] = Field(
        description="By default without what their own pages add: the spec, attempts, links and the like.",
        examples=[
            [
                {
                    "id": "019aab3c-5d1e-7c3f-8f00-0123456789ab",
                    "name": "BadNets on digits",
                    "status": "succeeded",
                    "dataset": "digits",
                    "model": "small_cnn",
                    "attack": "badnets",
                    "defenses": ["abl"],
                    "tags": {"study": "example"},
                    "created_at": "2026-01-31T12:00:00Z",
                    "finished_at": "2026-01-31T12:01:30Z",
                    "progress": {"fraction": 1.0},
                    "summary": [
                        {"arm": "undefended", "clean_accuracy": 0.972, "attack_success_rate": 1.0},
                        {"arm": "abl", "clean_accuracy": 0.961, "attack_success_rate": 0.004},
                    ],
                }
            ]
        ],
    )
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
