"""Types of the service's responses, for type checkers; at run time they are plain dictionaries.

Fractions are in [0, 1], times ISO 8601 in UTC, durations in seconds.
"""

from typing import Any, NotRequired, TypedDict

from app.specs.status import Status

Json = dict[str, Any]


class Progress(TypedDict, total=False):
    """Progress: ``epoch`` of ``epochs`` of the current stage, ``fraction`` of the whole experiment."""

    arm: str | None
    seed: int | None
    stage: str | None
    epoch: int
    epochs: int
    fraction: float
    seconds_left: float | None


class Attempt(TypedDict):
    """One worker's attempt to run an experiment."""

    number: int
    worker: str
    started_at: str
    finished_at: str | None
    outcome: str | None
    reason: str | None


class Experiment(TypedDict):
    """An experiment."""

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
    """Mean over ``n`` seeds and its 95 % interval, which is null for a single seed."""

    mean: float
    low: float | None
    high: float | None
    n: int


class ArmResults(TypedDict):
    """All numbers of one arm; ``seeds`` has one entry per seed."""

    arm: str
    aggregate: dict[str, Aggregate | None]
    seeds: list[dict[str, Any]]


class Results(TypedDict):
    """The body of ``GET .../results``."""

    experiment_id: str
    arms: list[ArmResults]


class Event(TypedDict):
    """An event of an experiment. Ids increase; a stream is resumed after an id."""

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
    """A file of an experiment."""

    id: str
    name: str
    arm: NotRequired[str | None]
    seed: NotRequired[int | None]
    kind: str
    media_type: str
    size: int
    sha256: str
