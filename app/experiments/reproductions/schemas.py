"""Responses of the reproduction routes."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from app.specs.status import Status


class Tolerance(BaseModel):
    """How far two numbers may be apart and still agree."""

    fractions: float = Field(description="Absolute, for accuracies and rates; 0 is bit for bit.")
    others: float = Field(description="Relative to the larger, for losses and distances.")
    reason: str


class Difference(BaseModel):
    """A field that decides numbers and differs."""

    field: str = Field(description="Path in the manifests.", examples=["packages.torch"])
    original: Any
    again: Any


class MetricAgreement(BaseModel):
    """One number of both runs."""

    arm: str
    seed: int
    metric: str
    original: float | None
    again: float | None
    difference: float | None = Field(description="again - original")
    tolerance: float = Field(description="Largest absolute difference that agrees.")
    agrees: bool


class ReproductionOut(BaseModel):
    """An experiment that ran another one again, and how its numbers compare."""

    experiment_id: str
    reproduces: str = Field(description="The original; it may have been deleted since.")
    status: Status
    verdict: Literal["pending", "agrees", "differs", "unknown"] = Field(
        description="pending: it has not ended. unknown: it failed, was canceled, or the original is gone."
    )
    tolerance: Tolerance | None
    environment: list[Difference] = Field(description="What differs between the two manifests.")
    metrics: list[MetricAgreement] = Field(description="All but `seconds`.")
    agreeing: int = Field(description="How many of the metrics agree.")


class ReproductionRef(BaseModel):
    """A link to a reproduction."""

    experiment_id: str
    status: Status
    link: str


class Reproductions(BaseModel):
    """The reproductions of an experiment, the newest first; at most 100."""

    reproductions: list[ReproductionRef]
