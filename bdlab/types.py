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


class ArmSummary(TypedDict):
    """Means over the seeds of an arm that are done."""

    arm: str
    clean_accuracy: float | None
    attack_success_rate: float | None


class ExperimentItem(TypedDict):
    """An experiment in a list; the parameter ``fields`` of the route selects other fields of `Experiment`."""

    id: str
    name: str
    status: Status
    dataset: str
    model: str
    attack: str
    defenses: list[str]
    tags: dict[str, str]
    created_at: str
    finished_at: str | None
    progress: Progress
    summary: list[ArmSummary]


class Experiment(ExperimentItem):
    """An experiment."""

    spec: dict[str, Any]
    spec_hash: str
    queued_at: str
    started_at: str | None
    attempts: list[Attempt]
    error: dict[str, Any] | None
    links: dict[str, str]


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
