"""Requests and responses of the webhook routes."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from app.core.validation import STORABLE
from app.specs.base import Input
from app.webhooks.events import DEFAULT_EVENTS, Event

Status = Literal["pending", "delivered", "failed"]
LONGEST_URL = 2000
LONGEST_NAME = 200
_URL = (
    "The https URL of the receiver, without user, password and fragment. Redirects are not followed. Deliveries fail "
    "if the host has an address that is not public."
)
_EVENTS = "Events to send. Default: all except `experiment.started`."
_NAME = "Free text."


class WebhookRequest(Input):
    """A webhook to create."""

    url: str = Field(max_length=LONGEST_URL, description=_URL)
    name: str = Field("", max_length=LONGEST_NAME, pattern=STORABLE, description=_NAME)
    events: list[Event] = Field(list(DEFAULT_EVENTS), min_length=1, description=_EVENTS)


class WebhookChange(Input):
    """Changes of a webhook; fields that are omitted or null keep their values."""

    url: str | None = Field(None, max_length=LONGEST_URL, description=_URL)
    name: str | None = Field(None, max_length=LONGEST_NAME, pattern=STORABLE, description=_NAME)
    events: list[Event] | None = Field(None, min_length=1, description="Events to send.")
    enabled: bool | None = Field(
        None, description="False disables the webhook; its pending deliveries fail. True enables it."
    )


class WebhookLinks(BaseModel):
    """Links to the routes of a webhook."""

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
    disabled_reason: str | None = Field(description="Why the webhook was disabled.")
    failing_since: datetime | None = Field(
        description="When deliveries began to fail; null if the last one succeeded."
    )
    last_success_at: datetime | None
    previous_secret_until: datetime | None = Field(
        description="Until then deliveries are also signed with the secret before the last rotation."
    )
    created_at: datetime
    links: WebhookLinks


class NewWebhookOut(WebhookOut):
    """A webhook with its new secret."""

    secret: str = Field(description="`whsec_` and base64. It cannot be shown again.")


class Webhooks(BaseModel):
    """One page of webhooks, newest first."""

    webhooks: list[WebhookOut]
    next: str | None = Field(description="Link to the next page; null on the last page.")


class DeliveryAttemptOut(BaseModel):
    """One request to the receiver."""

    number: int
    at: datetime
    seconds: float | None = Field(
        description="Duration of the request; null while it runs, or if the sender was stopped meanwhile."
    )
    status_code: int | None = Field(description="Status of the response; null if there was none.")
    error: str | None = Field(description="Why there was no response.")
    response: str | None = Field(description="The first 1000 bytes of the response.")


class DeliveryOut(BaseModel):
    """One event for one webhook."""

    id: str = Field(description="Value of the header `webhook-id`, the same in all attempts.")
    webhook_id: str
    type: str = Field(examples=["experiment.succeeded"])
    status: Status
    reason: str | None = Field(description="Why the delivery failed.")
    created_at: datetime
    ended_at: datetime | None
    next_attempt_at: datetime | None = Field(description="Null if there will be no further attempt.")
    attempts: list[DeliveryAttemptOut] = Field(description="Oldest first.")


class DeliveryDetail(DeliveryOut):
    """A delivery with its payload."""

    payload: dict[str, Any] = Field(description="The request body: `type`, `timestamp`, `data`.")


class Deliveries(BaseModel):
    """One page of deliveries, newest first."""

    deliveries: list[DeliveryOut]
    next: str | None = Field(description="Link to the next page; null on the last page.")
