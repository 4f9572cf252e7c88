"""What the housekeeping route takes."""

from pydantic import BaseModel, ConfigDict, Field

from app.settings import RetentionPolicy


class HousekeepingRequest(BaseModel):
    """One round."""

    model_config = ConfigDict(extra="forbid")

    delete: bool = Field(False, description="False is a dry run: it only tells what would go.")
    policy: RetentionPolicy | None = Field(
        None,
        description="What to go by; null is the policy of the settings (`BDLAB_RETENTION`), if there is one.",
    )
