"""The pages of webhooks and their deliveries."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.core.context import Ctx
from app.dashboard.rendering import PageRoute, page
from app.webhooks import service
from app.webhooks.events import DEFAULT_EVENTS, EVENTS

router = APIRouter(prefix="/webhooks", route_class=PageRoute, include_in_schema=False)
PER_PAGE = 50
Cursor = Annotated[str | None, Query()]


@router.get("")
def listing(request: Request, context: Ctx, cursor: Cursor = None) -> Response:
    """The owner's webhooks, and the form that makes one."""
    webhooks, next_cursor = service.list_webhooks(context, cursor, PER_PAGE)
    return page(
        request,
        "webhooks.html",
        webhooks=webhooks,
        next_cursor=next_cursor,
        events=EVENTS,
        default_events=DEFAULT_EVENTS,
    )


@router.get("/{webhook_id}")
def one(request: Request, context: Ctx, webhook_id: str, cursor: Cursor = None) -> Response:
    """One webhook and its deliveries."""
    deliveries, next_cursor = service.list_deliveries(context, webhook_id, None, cursor, PER_PAGE)
    return page(
        request,
        "webhook.html",
        webhook=service.get(context, webhook_id),
        deliveries=deliveries,
        next_cursor=next_cursor,
        events=EVENTS,
    )
