"""Responses of the results and metrics routes."""

from collections.abc import Iterable
from typing import Any, Self

from pydantic import BaseModel, Field

from app.specs.metrics import summarize


class Aggregate(BaseModel):
    """A metric aggregated over seeds."""

    mean: float
    low: float | None = Field(description="Lower bound of the 95 % Student-t interval; null for one seed.")
    high: float | None = Field(description="Upper bound of that interval; null for one seed.")
    n: int = Field(description="Number of seeds that have a value.")

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Self | None:
        """The aggregate of one value for each seed, ignoring None; None if there is no value."""
        summary = summarize(values)
        return cls.model_validate(summary) if summary is not None else None


class ArmResults(BaseModel):
    """The numbers of one trained model."""

    arm: str
    aggregate: dict[str, Aggregate] = Field(description="Aggregates by metric name; fractions are in [0, 1].")
    seeds: list[dict[str, Any]] = Field(
        description="For each seed its metrics by name, and its `warnings` and `error` if there are any.",
        examples=[[{"seed": 0, "clean_accuracy": 0.981, "attack_success_rate": 0.003}]],
    )


class Results(BaseModel):
    """The numbers of an experiment; while it runs, those that are known so far."""

    experiment_id: str
    arms: list[ArmResults]
    warnings: list[str] = Field(
        [], description="Warnings about the whole experiment, such as those of the attack."
    )


class Series(BaseModel):
    """One metric over the epochs of one arm and seed."""

    arm: str
    seed: int
    name: str
    steps: list[int] = Field(description="Epochs, numbered from 1 across all stages of the arm.")
    values: list[float | None]


class Metrics(BaseModel):
    """Time series."""

    series: list[Series]
