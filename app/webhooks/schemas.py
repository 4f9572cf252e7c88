"""What the routes of webhooks take and give."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.core.validation import STORABLE
from app.webhooks.events import USUAL, Event

Status = Literal["pending", "delivered", "failed"]
LONGEST_URL = 2000
LONGEST_NAME = 200
_URL = (
    "Where to send it: an https URL without user, password or fragment. Redirects are not followed, and addresses that "
    "are not public are refused when it is sent."
)
_EVENTS = "What to tell of. By default everything but `experiment.started`."


class WebhookRequest(BaseModel):
    """A webhook to make."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(max_length=LONGEST_URL, description=_URL)
    name: str = Field("", max_length=LONGEST_NAME, pattern=STORABLE, description="For people.")
    events: list[Event] = Field(list(USUAL), min_length=1, description=_EVENTS)


class WebhookChange(BaseModel):
    """What to change; what is left out, or null, stays."""

    model_config = ConfigDict(extra="forbid")

    url: str | None = Field(None, max_length=LONGEST_URL, description=_URL)
    name: str | None = Field(None, max_length=LONGEST_NAME, pattern=STORABLE, description="For people.")
    events: list[Event] | None = Field(None, min_length=1, description="What to tell of.")
    enabled: bool | None = Field(None, description="False: send nothing more, also not what waits.")


class WebhookLinks(BaseModel):
    """Where to go from here."""

    self: str
    deliveries: str
    test: str
    rotate: str


class WebhookOut(BaseModel):
    """A webhook, without its secret."""

    id: str
    url: str
    name: str
    events: list[Event]
    enabled: bool
    disabled_at: datetime | None
    disabled_reason: str | None = Field(description="Who or what disabled it.")
    failing_since: datetime | None = Field(
        description="Since when nothing arrives; null if the last one did."
    )
    last_success_at: datetime | None
    previous_secret_until: datetime | None = Field(
        description="Until then everything is signed with the secret from before the last rotation too."
    )
    created_at: datetime
    links: WebhookLinks


class NewWebhookOut(WebhookOut):
    """A webhook with a secret that was just made."""

    secret: str = Field(description="`whsec_` and base64. It is shown this once.")


class Webhooks(BaseModel):
    """One page of webhooks, the newest first."""

    webhooks: list[WebhookOut]
    next: str | None = Field(description="Link to the next page; null on the last.")


class DeliveryAttemptOut(BaseModel):
    """One request to the receiver."""

    number: int
    at: datetime
    seconds: float | None = Field(
        description="How long it took; null while it is under way, and where the sender was stopped before it knew."
    )
    status_code: int | None = Field(description="Of the answer; null if there was none.")
    error: str | None = Field(description="Why there was no answer.")
    response: str | None = Field(description="The first 1000 bytes of the answer.")


class DeliveryOut(BaseModel):
    """One event for one receiver."""

    id: str = Field(description="The header `webhook-id`: the same in every attempt.")
    webhook_id: str
    type: str = Field(examples=["experiment.succeeded"])
    status: Status
    reason: str | None = Field(description="Why it is tried no more.")
    created_at: datetime
    ended_at: datetime | None
    next_attempt_at: datetime | None = Field(description="Null once it is tried no more.")
    attempts: list[DeliveryAttemptOut] = Field(description="The oldest first.")


class DeliveryDetail(DeliveryOut):
    """One event for one receiver, with what is sent."""

    payload: dict[str, Any] = Field(description="The body, as JSON: `type`, `timestamp`, `data`.")


class Deliveries(BaseModel):
    """One page of deliveries, the newest first."""

    deliveries: list[DeliveryOut]
    next: str | None = Field(description="Link to the next page; null on the last.")
