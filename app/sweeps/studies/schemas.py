"""What the study routes take and give."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from app.results.numbers.schemas import Aggregate
from app.specs.status import Status
from app.specs.study import StudySpec
from app.sweeps.schemas import Standing

State = Status | Literal["missing"]


class States(BaseModel):
    """How many cells are in each state."""

    succeeded: int = Field(0, description="Have their numbers.")
    running: int = 0
    queued: int = 0
    failed: int = Field(0, description="Their arm failed, or the experiment as a whole.")
    canceled: int = 0
    missing: int = Field(0, description="Have no experiment, because it was deleted; `:extend` fills them.")


class Links(BaseModel):
    """Where the rest is."""

    self: str
    table: str
    experiments: str
    extend: str
    cancel: str
    retry: str


class StudySummary(Standing):
    """A study as lists show it."""

    id: str
    name: str
    created_at: datetime
    cells: int = Field(description="Attacks x arms x seeds.")
    links: Links


class StudyOut(StudySummary):
    """A study and how it stands."""

    spec: StudySpec
    states: States
    reused: int = Field(description="Cells whose numbers an earlier experiment had already.")


class StudyPage(BaseModel):
    """One page of studies."""

    studies: list[StudySummary]
    next: str | None = Field(description="Link to the next page; null on the last.")


class StudyValidation(BaseModel):
    """The outcome of a dry run."""

    cells: int
    reused: int = Field(description="Cells whose numbers are there already.")
    experiments: int = Field(description="Experiments that would be queued for the rest.")
    stages: int = Field(description="Different stages that those experiments are made of.")
    cached: int = Field(description="How many of them need not be computed again.")


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
    states: States = Field(description="How many seeds are in each state; none if there is no such cell.")
    warnings: int = Field(description="Warnings of this arm, over all seeds.")
    experiments: list[str] = Field(description="Where the numbers come from.")


class TableRow(BaseModel):
    """One attack."""

    attack: str = Field(description="The attack's label.")
    cells: list[TableCell] = Field(description="In the order of `arms`.")


class Average(Numbers):
    """One arm over all attacks: the mean of their means, with a 95 % interval; null unless every attack has a value."""

    arm: str


class Table(BaseModel):
    """The attack x defense matrix of a study. Fractions are in [0, 1]."""

    study_id: str
    name: str
    seeds: list[int]
    arms: list[str]
    rows: list[TableRow]
    averages: list[Average] = Field(description="Without the attack `none`.")
