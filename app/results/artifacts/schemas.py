"""What the artifact routes give."""

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
    details: dict[str, Any] = Field(description="A checkpoint says here whether it is `backdoored`.")
    created_at: datetime
    expired_at: datetime | None = Field(
        description="Since when the file is gone by the retention policy; its content is then a 410. Null: it is there."
    )
    expired_why: str | None = Field(description="Which part of the policy let it go.")
    content: str = Field(description="Link to the bytes.")


class Artifacts(BaseModel):
    """The files of an experiment, by name."""

    artifacts: list[ArtifactOut]


class Link(BaseModel):
    """Where to fetch a file without a key, and how to know that it is the right one."""

    url: str
    expires_at: datetime
    file_name: str = Field(examples=["seed-0_abl_curves.png"])
    size: int = Field(description="Bytes.")
    sha256: str
    backdoored: bool
