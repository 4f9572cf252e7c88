"""Parameters and responses of the sweep and study routes."""

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel, Field

from app.experiments.schemas import ArmSummary
from app.results.numbers.schemas import Aggregate
from app.specs.status import Status
from app.specs.stored import StudyDocument
from app.specs.sweep import SweepSpec

CellStatus = Status | Literal["missing"]
Retryable = Literal["failed", "canceled"]
RetryStates = Annotated[
    list[Retryable] | None,
    Query(description="Experiments to requeue; may be repeated. Default: failed", examples=[["failed"]]),
]
NextLink = Annotated[str | None, Field(description="Link to the next page; null on the last.")]


class Counts(BaseModel):
    """Number of experiments in each state."""

    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    canceled: int = 0


class BatchProgress(BaseModel):
    """Combined status of the experiments of a sweep or study."""

    status: Status = Field(
        description="`queued` while all are queued, `running` until all have ended; then `failed` if one "
        "failed, else `canceled` if one was canceled, else `succeeded`."
    )
    fraction: float = Field(description="Share of the work that is done; every experiment counts the same.")
    experiments: Counts


class SweepLinks(BaseModel):
    """Related resources and actions."""

    self: str
    cells: str
    experiments: str
    cancel: str
    retry: str


class StudyLinks(BaseModel):
    """Related resources and actions."""

    self: str
    table: str
    experiments: str
    extend: str
    cancel: str
    retry: str


class BatchSummary(BatchProgress):
    """A sweep or study in a list."""

    id: str
    name: str
    created_at: datetime
    cells: int = Field(description="Number of cells. In a study: attacks x arms x seeds.")


class SweepSummary(BatchSummary):
    """A sweep in a list."""

    missing: int = Field(description="Number of cells whose experiment was deleted.")
    links: SweepLinks


class StudySummary(BatchSummary):
    """A study in a list."""

    links: StudyLinks


class SweepOut(SweepSummary):
    """A sweep and its status."""

    spec: SweepSpec = Field(description="The request.")


class States(BaseModel):
    """Number of cells in each state."""

    succeeded: int = Field(0, description="Have results.")
    running: int = 0
    queued: int = 0
    failed: int = Field(0, description="Their arm or their whole experiment failed.")
    canceled: int = 0
    missing: int = Field(0, description="Their experiment was deleted; `:extend` fills them.")


class StudyOut(StudySummary):
    """A study and its status."""

    spec: StudyDocument
    states: States
    reused: int = Field(description="Number of cells with results of an earlier experiment.")


BatchOut = SweepOut | StudyOut


class SweepPage(BaseModel):
    """One page of sweeps."""

    sweeps: list[SweepSummary]
    next: NextLink


class StudyPage(BaseModel):
    """One page of studies."""

    studies: list[StudySummary]
    next: NextLink


class CellOut(BaseModel):
    """One cell of a sweep."""

    number: int
    coordinates: dict[str, Any] = Field(description="The overrides that define the cell, by path.")
    status: CellStatus = Field(description="`missing`: its experiment was deleted.")
    fraction: float
    experiment_id: str | None
    summary: list[ArmSummary] = Field(description="Means over the finished seeds.")


class CellPage(BaseModel):
    """One page of cells."""

    cells: list[CellOut]
    next: NextLink


class BatchValidation(BaseModel):
    """The outcome of a dry run."""

    cells: int
    stages: int = Field(description="Number of distinct stages of the experiments that would be queued.")
    cached: int = Field(description="Number of these stages that are cached.")


class SweepValidation(BatchValidation):
    """The outcome of a dry run."""

    models: int = Field(description="Number of models to train and evaluate: arms x seeds, over all cells.")


class StudyValidation(BatchValidation):
    """The outcome of a dry run."""

    reused: int = Field(description="Number of cells with results of an earlier experiment.")
    experiments: int = Field(description="Number of experiments that would be queued for the other cells.")


class Numbers(BaseModel):
    """Three metrics over seeds or attacks; null where there is no value."""

    clean_accuracy: Aggregate | None
    attack_success_rate: Aggregate | None
    defense_effectiveness: Aggregate | None = Field(
        description="(max(0, ASR drop) - max(0, CA drop) + 1) / 2 against `undefended` of the same attack and seed."
    )


class TableCell(Numbers):
    """One attack under one arm."""

    arm: str
    states: States = Field(description="Number of seeds in each state; all 0 if there is no such cell.")
    warnings: int = Field(description="Number of warnings of this arm, over all seeds.")
    experiments: list[str] = Field(description="Experiments that the numbers come from.")


class TableRow(BaseModel):
    """One attack."""

    attack: str = Field(description="The attack's label.")
    cells: list[TableCell] = Field(description="In the order of `arms`.")


class Average(Numbers):
    """One arm over all attacks: the mean of their means, with a 95 % interval; null unless every attack has a value."""

    arm: str


class Worst(Numbers):
    """One arm at its worst: the lowest accuracy, the highest attack success and the lowest effectiveness of its cells.

    Each may come from another attack. Null unless every attack has a value.
    """

    arm: str
    attack: str | None = Field(description="The attack with the highest success rate.")


class Table(BaseModel):
    """The attack x defense matrix of a study. Fractions are in [0, 1]."""

    study_id: str
    name: str
    seeds: list[int]
    arms: list[str]
    rows: list[TableRow]
    averages: list[Average] = Field(description="Without the attack `none`.")
    worst: list[Worst] = Field(description="Without the attack `none`.")
