"""Make, change, test and delete webhooks, and look at what was sent to them."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query, Request, Response

from app.core.context import Ctx
from app.core.openapi import problems
from app.core.query_parameters import reject_unknown_parameters
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

router = APIRouter(prefix="/v1", tags=["webhooks"], dependencies=[Depends(reject_unknown_parameters)])

NEW: dict[str, Any] = {
    "ends": {
        "summary": "Tell of everything that ends",
        "value": {"url": "https://hooks.example.org/backdoor-lab", "name": "team chat"},
    },
    "failures": {
        "summary": "Tell of failures alone",
        "value": {"url": "https://hooks.example.org/alarm", "events": ["experiment.failed"]},
    },
}
CHANGE: dict[str, Any] = {
    "enable": {"summary": "Send again, after it was disabled", "value": {"enabled": True}},
    "events": {"summary": "Tell of sweeps alone", "value": {"events": ["sweep.finished"]}},
}
States = Annotated[Status | None, Query(description="Only those in this state", examples=["failed"])]


@router.post(
    "/webhooks",
    status_code=201,
    response_model=NewWebhookOut,
    summary="Make a webhook",
    responses=problems(400, 413, 415, 422),
)
def create(
    context: Ctx, asked: Annotated[WebhookRequest, Body(openapi_examples=NEW)], _json: JsonBody
) -> Response:
    """From now on the URL gets a POST for each of the `events` of the owner's experiments, sweeps, studies, models and
    data sets, signed after the Standard Webhooks convention. The answer holds the secret, this once."""
    row, secret = service.create(context, asked)
    shown = NewWebhookOut(**_webhook(row).model_dump(), secret=secret)
    return as_json(shown, status=201, headers={"Location": f"/v1/webhooks/{row.id}"})


@router.get("/webhooks", response_model=Webhooks, summary="List webhooks", responses=problems(400, 422))
def listing(request: Request, context: Ctx, limit: Limit = 50, cursor: Cursor = None) -> Response:
    """One page of webhooks, the newest first. Follow `next`, or the `Link` header, for more."""
    rows, following = service.listing(context, cursor, limit)
    found = [_webhook(row) for row in rows]
    return paged(request, following, lambda link: Webhooks(webhooks=found, next=link))


@router.get(
    "/webhooks/{webhook_id}", response_model=WebhookOut, summary="One webhook", responses=problems(404, 422)
)
def get(webhook_id: str, context: Ctx) -> Response:
    """Where it sends, what, and whether that arrives; never its secret."""
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
    asked: Annotated[WebhookChange, Body(openapi_examples=CHANGE)],
    _json: JsonBody,
) -> Response:
    """Change what is given. `enabled: false` gives up what waits; `enabled: true` sends what happens from now on."""
    return as_json(_webhook(service.change(context, webhook_id, asked)))


@router.delete(
    "/webhooks/{webhook_id}", status_code=204, summary="Delete a webhook", responses=problems(404, 422)
)
def remove(webhook_id: str, context: Ctx) -> None:
    """Delete a webhook with all that waits for it, and its log."""
    service.remove(context, webhook_id)


@router.post(
    "/webhooks/{webhook_id}:rotate",
    response_model=NewWebhookOut,
    summary="Give a webhook a new secret",
    responses=problems(404, 422),
)
def rotate(webhook_id: str, context: Ctx) -> Response:
    """The answer holds the new secret, this once. For 24 hours everything carries a signature by the old one too, so
    that the receiver can change over; rotating twice makes the old one useless at once."""
    row, secret = service.rotate(context, webhook_id)
    return as_json(NewWebhookOut(**_webhook(row).model_dump(), secret=secret))


@router.post(
    "/webhooks/{webhook_id}:test",
    response_model=DeliveryDetail,
    summary="Send a ping to a webhook",
    responses=problems(404, 422, 503),
)
async def test(webhook_id: str, context: Ctx) -> Response:
    """Send a signed `webhook.ping`, once, also to a disabled webhook, and answer with what came of it: `delivered`, or
    `failed` with the receiver's answer or the reason why there was none."""
    return as_json(_detail(await service.test(context, webhook_id)))


@router.get(
    "/webhooks/{webhook_id}/deliveries",
    response_model=Deliveries,
    summary="What was sent to a webhook",
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
    """One page of deliveries with all attempts, the newest first. They are kept for 30 days after they ended."""
    rows, following = service.deliveries(context, webhook_id, status, cursor, limit)
    found = [DeliveryOut(**_delivery(row)) for row in rows]
    return paged(request, following, lambda link: Deliveries(deliveries=found, next=link))


@router.get(
    "/webhooks/{webhook_id}/deliveries/{delivery_id}",
    response_model=DeliveryDetail,
    summary="One delivery",
    responses=problems(404, 422),
)
def delivery(webhook_id: str, delivery_id: str, context: Ctx) -> Response:
    """What is sent, every attempt, and what the receiver answered."""
    return as_json(_detail(service.delivery(context, webhook_id, delivery_id)))


@router.post(
    "/webhooks/{webhook_id}/deliveries/{delivery_id}:redeliver",
    status_code=202,
    response_model=DeliveryDetail,
    summary="Send a delivery again",
    responses=problems(404, 409, 422),
)
def redeliver(webhook_id: str, delivery_id: str, context: Ctx) -> Response:
    """Send it at once, under the same `webhook-id`, and try it for as long as a new one. Refused while the webhook is
    disabled."""
    return as_json(_detail(service.redeliver(context, webhook_id, delivery_id)), status=202)


def _webhook(row: Webhook) -> WebhookOut:
    here = f"/v1/webhooks/{row.id}"
    links = WebhookLinks(
        self=here, deliveries=f"{here}/deliveries", test=f"{here}:test", rotate=f"{here}:rotate"
    )
    same = set(WebhookOut.model_fields) - {"enabled", "previous_secret_until", "links"}
    return WebhookOut(
        **{name: getattr(row, name) for name in same},
        enabled=row.disabled_at is None,
        previous_secret_until=row.previous_until,
        links=links,
    )


def _detail(row: Delivery) -> DeliveryDetail:
    return DeliveryDetail(**_delivery(row), payload=service.payload(row))


def _delivery(row: Delivery) -> dict[str, Any]:
    same = set(DeliveryOut.model_fields) - {"attempts", "next_attempt_at"}
    return {
        **{name: getattr(row, name) for name in same},
        "next_attempt_at": row.due_at if row.status == PENDING else None,
        "attempts": [DeliveryAttemptOut.model_validate(one, from_attributes=True) for one in row.tries],
    }
