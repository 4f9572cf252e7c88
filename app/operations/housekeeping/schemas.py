"""The request of the housekeeping route."""

from pydantic import Field

from app.settings import RetentionPolicy
from app.specs.base import Input


class HousekeepingRequest(Input):
    """One run."""

    delete: bool = Field(False, description="False is a dry run, which only reports.")
    policy: RetentionPolicy | None = Field(
        None, description="Null applies the policy of the settings (`BDLAB_RETENTION`), if there is one."
    )
