"""What the health routes give."""

from pydantic import BaseModel, Field


class Check(BaseModel):
    """One thing that the service needs."""

    ok: bool
    detail: str = Field("", description="What is wrong, or what is there.")


class Readiness(BaseModel):
    """Whether experiments that are submitted now will run."""

    ready: bool
    checks: dict[str, Check] = Field(
        description="database, broker, objects, and a live worker on each queue."
    )


class Liveness(BaseModel):
    """The process answers."""

    status: str = Field("ok", examples=["ok"])
