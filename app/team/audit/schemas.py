"""Response of the audit route."""

from datetime import datetime

from pydantic import BaseModel, Field


class AuditOut(BaseModel):
    """One request or command."""

    id: int
    at: datetime
    request_id: str = Field(description="The X-Request-ID of the response.")
    owner: str
    key: str | None = Field(description="The API key's prefix; null if the service was open.")
    client: str = Field(description="Address of the client; for a command the system user.")
    method: str = Field(description="COMMAND for a `bdlab` command that changed the database directly.")
    route: str = Field(examples=["/v1/experiments/{experiment_id}:cancel"])
    path: str
    status: int = Field(description="Status of the response; for a command its exit code.")
    location: str | None = Field(
        description="The created resource: `Location` of the response; for a command what it changed."
    )


class Audit(BaseModel):
    """One page of the audit log, newest first."""

    entries: list[AuditOut]
    next: str | None = Field(description="Link to the next page; null on the last page.")
