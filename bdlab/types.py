"""Shapes of the service's answers, for type checkers; at run time they are plain dictionaries.

Fractions are in [0, 1], times ISO 8601 in UTC, durations in seconds. A key may be absent.
"""

from typing import Any, NotRequired, TypedDict

from app.specs.status import Status


class Progress(TypedDict, total=False):
    """How far a run is: ``epoch`` of ``epochs`` of this stage, ``fraction`` of the whole experiment."""

    arm: str | None
    seed: int | None
    stage: str | None
    epoch: int
    epochs: int
    fraction: float
    seconds_left: float | None


class Attempt(TypedDict):
    """One worker's try."""

    number: int
    worker: str
    started_at: str
    finished_at: str | None
    outcome: str | None
    reason: str | None


class Experiment(TypedDict):
    """One submitted experiment."""

    id: str
    name: str
    status: Status
    spec: dict[str, Any]
    spec_hash: str
    progress: Progress
    attempts: NotRequired[list[Attempt]]
    links: dict[str, str]
    created_at: NotRequired[str]
    queued_at: NotRequired[str]
    started_at: NotRequired[str | None]
    finished_at: NotRequired[str | None]
    summary: NotRequired[Any]
    error: NotRequired[dict[str, Any] | None]


class Aggregate(TypedDict):
    """Mean over seeds and the 95 % interval; no interval with a single seed."""

    mean: float
    low: float | None
    high: float | None
    n: int


class ArmResults(TypedDict):
    """All numbers of one trained model; ``seeds`` hold one row a seed."""

    arm: str
    aggregate: dict[str, Aggregate | None]
    seeds: list[dict[str, Any]]


class Results(TypedDict):
    """The body of ``GET .../results``."""

    experiment_id: str
    arms: list[ArmResults]


class Event(TypedDict):
    """Something that happened; ``id`` orders events and resumes a stream."""

    id: int
    type: str
    at: str
    data: dict[str, Any]


class LogLine(TypedDict):
    """One line of an experiment's log; ``offset`` counts lines from 0."""

    offset: int
    at: str
    attempt: int
    message: str


class Artifact(TypedDict):
    """A stored file."""

    id: str
    name: str
    arm: NotRequired[str | None]
    seed: NotRequired[int | None]
    kind: str
    media_type: str
    size: int
    sha256: str
