"""Webhooks and their deliveries."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request, Response

from app.core.context import Ctx
from app.core.openapi import problems
from app.core.routing import Cursor, JsonBody, Limit, as_json, paged
from app.tables.webhooks import PENDING, Delivery, Webhook
from app.webhooks import service
from app.webhooks.schemas import (
    Deliveries,
    DeliveryAttemptOut,
    DeliveryDetail,
    DeliveryOut,
    NewWebhookOut,
    Status,
    WebhookChange,
    WebhookLinks,
    WebhookOut,
    WebhookRequest,
    Webhooks,
)

router = APIRouter(prefix="/v1", tags=["webhooks"])

NEW: dict[str, Any] = {
    "ends": {
        "summary": "Send every end",
        "value": {"url": "https://hooks.example.org/backdoor-lab", "name": "team chat"},
    },
    "failures": {
        "summary": "Send only failures",
        "value": {"url": "https://hooks.example.org/alarm", "events": ["experiment.failed"]},
    },
}
CHANGE: dict[str, Any] = {
    "enable": {"summary": "Enable again after it was disabled", "value": {"enabled": True}},
    "events": {"summary": "Send only sweeps", "value": {"events": ["sweep.finished"]}},
}
States = Annotated[Status | None, Query(description="Only deliveries with this status", examples=["failed"])]


@router.post(
    "/webhooks",
    status_code=201,
    response_model=NewWebhookOut,
    summary="Create a webhook",
    responses=problems(400, 413, 415, 422),
)
def create(
    context: Ctx, body: Annotated[WebhookRequest, Body(openapi_examples=NEW)], _json: JsonBody
) -> Response:
    """From now on each of the `events` of the owner's experiments, sweeps, studies, models and datasets is sent to the
    URL by POST, signed as Standard Webhooks specifies. The response contains the secret, which is not shown again."""
    row, secret = service.create(context, body)
    shown = NewWebhookOut(**_webhook(row).model_dump(), secret=secret)
    return as_json(shown, status=201, headers={"Location": f"/v1/webhooks/{row.id}"})


@router.get("/webhooks", response_model=Webhooks, summary="List webhooks", responses=problems(400, 422))
def listing(request: Request, context: Ctx, limit: Limit = 50, cursor: Cursor = None) -> Response:
    """One page of webhooks, newest first. `next` and the `Link` header lead to the next page."""
    rows, following = service.list_webhooks(context, cursor, limit)
    webhooks = [_webhook(row) for row in rows]
    return paged(request, following, lambda link: Webhooks(webhooks=webhooks, next=link))


@router.get(
    "/webhooks/{webhook_id}", response_model=WebhookOut, summary="One webhook", responses=problems(404, 422)
)
def get(webhook_id: str, context: Ctx) -> Response:
    """A webhook with its state, without its secret."""
    return as_json(_webhook(service.get(context, webhook_id)))


@router.patch(
    "/webhooks/{webhook_id}",
    response_model=WebhookOut,
    summary="Change a webhook",
    responses=problems(400, 404, 413, 415, 422),
)
def change(
    webhook_id: str,
    context: Ctx,
    body: Annotated[WebhookChange, Body(openapi_examples=CHANGE)],
    _json: JsonBody,
) -> Response:
    """Changes the given fields. `enabled: false` fails pending deliveries; `enabled: true` sends future events."""
    return as_json(_webhook(service.change(context, webhook_id, body)))


@router.delete(
    "/webhooks/{webhook_id}", status_code=204, summary="Delete a webhook", responses=problems(404, 422)
)
def remove(webhook_id: str, context: Ctx) -> None:
    """Deletes a webhook with its pending and finished deliveries."""
    service.remove(context, webhook_id)


@router.post(
    "/webhooks/{webhook_id}:rotate",
    response_model=NewWebhookOut,
    summary="Rotate the secret of a webhook",
    responses=problems(404, 422),
)
def rotate(webhook_id: str, context: Ctx) -> Response:
    """The response contains the new secret, which is not shown again. For 24 hours deliveries are also signed with the
    old secret, so that the receiver can be changed; a second rotation invalidates the old secret immediately."""
    row, secret = service.rotate(context, webhook_id)
    return as_json(NewWebhookOut(**_webhook(row).model_dump(), secret=secret))


@router.post(
    "/webhooks/{webhook_id}:test",
    response_model=DeliveryDetail,
    summary="Test a webhook",
    responses=problems(404, 422, 503),
)
async def test(webhook_id: str, context: Ctx) -> Response:
    """Sends a signed `webhook.ping` once, even to a disabled webhook, and responds with the outcome: `delivered`, or
    `failed` with the receiver's response or the reason why there was none."""
    return as_json(_detail(await service.send_ping(context, webhook_id)))


@router.get(
    "/webhooks/{webhook_id}/deliveries",
    response_model=Deliveries,
    summary="List the deliveries of a webhook",
    responses=problems(400, 404, 422),
)
def deliveries(
    webhook_id: str,
    request: Request,
    context: Ctx,
    status: States = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """One page of deliveries with their attempts, newest first. A delivery is kept for 30 days after it has ended."""
    rows, following = service.list_deliveries(context, webhook_id, status, cursor, limit)
    page = [DeliveryOut(**_delivery(row)) for row in rows]
    return paged(request, following, lambda link: Deliveries(deliveries=page, next=link))


@router.get(
    "/webhooks/{webhook_id}/deliveries/{delivery_id}",
    response_model=DeliveryDetail,
    summary="One delivery",
    responses=problems(404, 422),
)
def delivery(webhook_id: str, delivery_id: str, context: Ctx) -> Response:
    """A delivery with its payload, its attempts and the receiver's responses."""
    return as_json(_detail(service.get_delivery(context, webhook_id, delivery_id)))


@router.post(
    "/webhooks/{webhook_id}/deliveries/{delivery_id}:redeliver",
    status_code=202,
    response_model=DeliveryDetail,
    summary="Send a delivery again",
    responses=problems(404, 409, 422),
)
def redeliver(webhook_id: str, delivery_id: str, context: Ctx) -> Response:
    """Sends the delivery now, with the same `webhook-id`, and retries it for as long as a new one. Rejected while the
    webhook is disabled."""
    return as_json(_detail(service.redeliver(context, webhook_id, delivery_id)), status=202)


def _webhook(row: Webhook) -> WebhookOut:
    path = f"/v1/webhooks/{row.id}"
    links = WebhookLinks(
        self=path, deliveries=f"{path}/deliveries", test=f"{path}:test", rotate=f"{path}:rotate"
    )
    columns = set(WebhookOut.model_fields) - {"enabled", "previous_secret_until", "links"}
    return WebhookOut(
        **{name: getattr(row, name) for name in columns},
        enabled=row.disabled_at is None,
        previous_secret_until=row.previous_until,
        links=links,
    )


def _detail(row: Delivery) -> DeliveryDetail:
    return DeliveryDetail(**_delivery(row), payload=json.loads(row.body))


def _delivery(row: Delivery) -> dict[str, Any]:
    columns = set(DeliveryOut.model_fields) - {"attempts", "next_attempt_at"}
    return {
        **{name: getattr(row, name) for name in columns},
        "next_attempt_at": row.due_at if row.status == PENDING else None,
        "attempts": [
            DeliveryAttemptOut.model_validate(attempt, from_attributes=True) for attempt in row.tries
        ],
    }
