"""Responses of the health routes."""

from pydantic import BaseModel, Field


class Check(BaseModel):
    """The state of one thing that the service needs."""

    ok: bool
    detail: str = Field("", description="What is wrong, or what was found.")


class Readiness(BaseModel):
    """Whether experiments submitted now will run."""

    ready: bool
    checks: dict[str, Check] = Field(
        description="database, broker, objects, and a live worker on each queue."
    )


class Liveness(BaseModel):
    """The process is alive."""

    status: str = Field("ok", examples=["ok"])
