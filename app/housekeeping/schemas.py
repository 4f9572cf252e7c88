"""What the housekeeping route takes."""

from pydantic import BaseModel, ConfigDict, Field

from app.housekeeping.policy import Policy


class HousekeepingRequest(BaseModel):
    """One round."""

    model_config = ConfigDict(extra="forbid")

    delete: bool = Field(False, description="False is a dry run: it only tells what would go.")
    policy: Policy | None = Field(
        None,
        description="What to go by; null is the policy of the settings (`BDLAB_RETENTION`), if there is one.",
    )
