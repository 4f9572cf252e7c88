"""The request of the housekeeping route."""

from pydantic import BaseModel, ConfigDict, Field

from app.settings import RetentionPolicy


class HousekeepingRequest(BaseModel):
    """One run."""

    model_config = ConfigDict(extra="forbid")

    delete: bool = Field(False, description="False is a dry run, which only reports.")
    policy: RetentionPolicy | None = Field(
        None, description="Null applies the policy of the settings (`BDLAB_RETENTION`), if there is one."
    )
