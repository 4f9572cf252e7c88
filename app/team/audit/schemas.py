"""What the audit route gives."""

from datetime import datetime

from pydantic import BaseModel, Field


class AuditOut(BaseModel):
    """One request."""

    id: int
    at: datetime
    request_id: str = Field(description="The answer's X-Request-ID.")
    owner: str
    key: str | None = Field(description="The API key's prefix; null while the service was open.")
    client: str = Field(
        description="Address that the request came from; of a command the user of the system."
    )
    method: str = Field(description="COMMAND: no request, but `bdlab` on the database itself.")
    route: str = Field(examples=["/v1/experiments/{experiment_id}:cancel"])
    path: str
    status: int = Field(description="The answer's status; of a command its exit code.")
    location: str | None = Field(
        description="What it made: the answer's `Location`; of a command what it changed. Null if it made nothing."
    )


class Audit(BaseModel):
    """One page of the audit log, the newest first."""

    entries: list[AuditOut]
    next: str | None = Field(description="Link to the next page; null on the last.")
