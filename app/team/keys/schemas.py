"""Requests and responses of the routes of keys, owners and limits."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from app.core.validation import STORABLE
from app.specs.base import Input

Scope = Literal["read", "write", "artifacts:backdoored", "admin"]
NAME = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,99}$"


class KeyRequest(Input):
    """A key to create."""

    owner: str = Field(
        "local",
        pattern=NAME,
        description="A person, a team or a project; created if it is new. All keys of an owner see the same data.",
    )
    scopes: list[Scope] = Field(["read", "write"], min_length=1, description="What the key permits.")
    label: str = Field(
        "", max_length=100, pattern=STORABLE, description="Free text, such as who uses the key and where."
    )
    expires_in_days: int | None = Field(None, ge=1, le=3650, description="Null: the key never expires.")


class KeyOut(BaseModel):
    """A key, without its secret part."""

    id: str
    prefix: str = Field(
        description="The part of the key between `bdlab_` and the secret, which also identifies it in the audit log."
    )
    owner: str
    label: str
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="To the minute; null if the key was never used.")


class NewKeyOut(KeyOut):
    """A new key."""

    key: str = Field(description="The complete key. It is not stored and cannot be shown again.")


class Keys(BaseModel):
    """One page of keys, newest first."""

    keys: list[KeyOut]
    next: str | None = Field(description="Link to the next page; null on the last page.")


class LimitsIn(Input):
    """All limits of an owner. Null: the limit of the settings."""

    queued: int | None = Field(None, ge=0, le=2**31 - 1, description="Queued experiments.")
    running: int | None = Field(
        None, ge=0, le=2**31 - 1, description="Experiments that run at the same time."
    )
    device_seconds: int | None = Field(None, ge=0, le=2**53, description="Seconds of device time in 30 days.")
    bytes: int | None = Field(None, ge=0, le=2**53, description="Bytes of stored files.")
    webhooks: int | None = Field(None, ge=0, le=2**31 - 1, description="Webhooks.")
    requests: int | None = Field(None, ge=1, le=2**31 - 1, description="Requests per minute.")


class OwnerOut(BaseModel):
    """An owner and the limits set for it."""

    name: str
    created_at: datetime
    limits: LimitsIn


class Owners(BaseModel):
    """One page of owners, sorted by name."""

    owners: list[OwnerOut]
    next: str | None = Field(description="Link to the next page; null on the last page.")


class Use(BaseModel):
    """Usage of a quota."""

    used: float
    limit: int | None = Field(description="Null: no limit.")


class Me(BaseModel):
    """The sender of the request and its permissions."""

    owner: str
    key: str | None = Field(description="Prefix of the key; null while the service is open.")
    scopes: list[Scope]
    open: bool = Field(
        description="True until the first key is created: every user of this machine has full access."
    )
    requests_per_minute: int | None = Field(description="Null: no limit.")
    quotas: dict[str, Use] = Field(
        description="`queued` and `running` experiments, `device_seconds` in the last 30 days, stored `bytes`, "
        "`webhooks`."
    )
