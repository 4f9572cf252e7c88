"""What the routes of keys and limits take and give."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from app.core.validation import STORABLE

Scope = Literal["read", "write", "artifacts:backdoored", "admin"]
NAME = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,99}$"


class KeyRequest(BaseModel):
    """A key to make."""

    model_config = ConfigDict(extra="forbid")

    owner: str = Field(
        "local",
        pattern=NAME,
        description="A person, a team or a project; made if it is new. Keys of one owner share all.",
    )
    scopes: list[Scope] = Field(["read", "write"], min_length=1, description="What the key may do.")
    label: str = Field(
        "", max_length=100, pattern=STORABLE, description="For people: who uses the key, and where."
    )
    expires_in_days: int | None = Field(None, ge=1, le=3650, description="Null: never.")


class KeyOut(BaseModel):
    """A key, without its secret part."""

    id: str
    prefix: str = Field(description="The part between `bdlab_` and the secret; also in the audit log.")
    owner: str
    label: str
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="To the minute.")


class NewKeyOut(KeyOut):
    """A key that was just made."""

    key: str = Field(description="The whole key. It is shown this once and stored nowhere.")


class Keys(BaseModel):
    """One page of keys, the newest first."""

    keys: list[KeyOut]
    next: str | None = Field(description="Link to the next page; null on the last.")


class LimitsIn(BaseModel):
    """An owner's own limits, all at once. Null: as in the settings."""

    model_config = ConfigDict(extra="forbid")

    queued: int | None = Field(None, ge=0, le=2**31 - 1, description="Experiments that wait.")
    running: int | None = Field(None, ge=0, le=2**31 - 1, description="Experiments that run at a time.")
    device_seconds: int | None = Field(
        None, ge=0, le=2**53, description="Seconds on workers' devices in 30 days."
    )
    bytes: int | None = Field(None, ge=0, le=2**53, description="Bytes of stored files.")
    webhooks: int | None = Field(None, ge=0, le=2**31 - 1, description="Webhooks.")
    requests: int | None = Field(None, ge=1, le=2**31 - 1, description="Requests in a minute.")


class OwnerOut(BaseModel):
    """An owner and its own limits."""

    name: str
    created_at: datetime
    limits: LimitsIn


class Owners(BaseModel):
    """One page of owners, by name."""

    owners: list[OwnerOut]
    next: str | None = Field(description="Link to the next page; null on the last.")


class Use(BaseModel):
    """How much of a limit is used."""

    used: float
    limit: int | None = Field(description="Null: no limit.")


class Me(BaseModel):
    """Who sent the request, and what it may do."""

    owner: str
    key: str | None = Field(description="The key's prefix; null while the service is open.")
    scopes: list[Scope]
    open: bool = Field(
        description="True while no key was ever made: whoever uses this machine may do everything."
    )
    requests_per_minute: int | None = Field(description="Null: no limit.")
    quotas: dict[str, Use] = Field(
        description="`queued` and `running` experiments, `device_seconds` of the last 30 days, stored `bytes`, "
        "`webhooks`."
    )
