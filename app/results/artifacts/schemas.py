"""Responses of the artifact routes."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from app.specs.artifacts import ArtifactKind


class ArtifactOut(BaseModel):
    """A stored file."""

    id: str
    experiment_id: str
    arm: str | None = Field(description="Null if the file belongs to the whole experiment.")
    seed: int | None
    name: str = Field(examples=["seed-0/abl/curves.png"])
    kind: ArtifactKind
    media_type: str
    size: int = Field(description="Bytes.")
    sha256: str
    details: dict[str, Any] = Field(description="For example whether a checkpoint is `backdoored`.")
    created_at: datetime
    expired_at: datetime | None = Field(
        description="When the retention policy deleted the file, whose content is then a 410; null if it is stored."
    )
    expired_why: str | None = Field(description="The rule of the retention policy that deleted the file.")
    content: str = Field(description="Link to the bytes.")


class Artifacts(BaseModel):
    """The files of an experiment, sorted by name."""

    artifacts: list[ArtifactOut]


class Link(BaseModel):
    """A link to a file that needs no key, and the hash and size to check the download."""

    url: str = Field(
        description="A path if `BDLAB_PUBLIC_URL` is not set and the request comes from another machine."
    )
    expires_at: datetime
    file_name: str = Field(examples=["seed-0_abl_curves.png"])
    size: int = Field(description="Bytes.")
    sha256: str
    backdoored: bool
