"""What the results routes give."""

from collections.abc import Iterable
from typing import Any, Self

from pydantic import BaseModel, Field

from app.specs.metrics import summarize


class Aggregate(BaseModel):
    """A metric over the seeds."""

    mean: float
    low: float | None = Field(description="Lower end of the 95 % Student-t interval; null for one seed.")
    high: float | None = Field(description="Upper end.")
    n: int = Field(description="Seeds that have a value.")

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Self | None:
        """The mean of the values that are not None, with its interval; None if there is no such value."""
        summary = summarize(values)
        return cls.model_validate(summary) if summary is not None else None


class ArmResults(BaseModel):
    """One trained model's numbers."""

    arm: str
    aggregate: dict[str, Aggregate] = Field(description="By metric; fractions are in [0, 1].")
    seeds: list[dict[str, Any]] = Field(
        description="For each seed its metrics by name, and `warnings` and `error` where there are any.",
        examples=[[{"seed": 0, "clean_accuracy": 0.981, "attack_success_rate": 0.003}]],
    )


class Results(BaseModel):
    """The numbers of an experiment, as far as it has come."""

    experiment_id: str
    arms: list[ArmResults]
    warnings: list[str] = Field([], description="Warnings that concern no single arm, such as the attack's.")


class Series(BaseModel):
    """A metric over the epochs of one arm and seed."""

    arm: str
    seed: int
    name: str
    steps: list[int] = Field(description="Epochs, counted from 1 over all stages of the arm.")
    values: list[float | None]


class Metrics(BaseModel):
    """Time series."""

    series: list[Series]
