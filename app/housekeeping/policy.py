"""What may be deleted, as an operator says it."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from app.specs.artifacts import ArtifactKind

Tag = Annotated[
    str, Field(pattern=r"^[^:\x00]{1,64}(:[^:\x00]{0,200})?$", examples=["keep", "study:seed-table"])
]
"""``key``, or ``key:value``."""


def _heavy() -> list[ArtifactKind]:
    return ["checkpoint", "data"]


class Rule(BaseModel):
    """Files of experiments that ended long enough ago."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    days: float = Field(description="The experiment ended more than so many days ago.", gt=0, le=36_500)
    kinds: list[ArtifactKind] = Field(
        default_factory=_heavy, description="Which of its files.", min_length=1, max_length=4
    )
    tag: Tag | None = Field(None, description="Only experiments with this tag; null is any.")


class Policy(BaseModel):
    """What may be deleted. Files of running and queued experiments, manifests and numbers are never."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rules: list[Rule] = Field(
        default_factory=list,
        description="A file goes when every experiment that has it falls under one.",
        max_length=50,
    )
    keep: list[Tag] = Field(
        default_factory=lambda: ["keep"],
        description="Files of experiments with one of these tags stay.",
        max_length=50,
    )
    max_bytes: int | None = Field(
        None,
        description="When more is stored, cached stages go, those that were used longest ago first; then checkpoints "
        "and data, those of the experiment that ended first first.",
        ge=0,
    )
    stage_days: float | None = Field(
        None, description="Cached stages that nobody used for so many days go.", gt=0, le=36_500
    )
    grace_hours: float = Field(
        24.0, description="What belongs to nothing is left alone until it is so old.", ge=1, le=8760
    )
    every_hours: float = Field(24.0, description="How often the relay acts on this.", ge=0.1, le=8760)
