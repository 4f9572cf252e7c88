"""The pages of webhooks: whom the service tells of what, and whether that arrived."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.core.context import Ctx
from app.dashboard.rendering import PageRoute, page
from app.webhooks import service
from app.webhooks.events import EVENTS, USUAL

router = APIRouter(prefix="/webhooks", route_class=PageRoute, include_in_schema=False)
PER_PAGE = 50
Cursor = Annotated[str | None, Query()]


@router.get("")
def listing(request: Request, context: Ctx, cursor: Cursor = None) -> Response:
    """The owner's webhooks, and the form that makes one."""
    found, following = service.listing(context, cursor, PER_PAGE)
    return page(request, "webhooks.html", hooks=found, next=following, events=EVENTS, usual=USUAL)


@router.get("/{webhook_id}")
def one(request: Request, context: Ctx, webhook_id: str, cursor: Cursor = None) -> Response:
    """One webhook and what was sent to it."""
    deliveries, following = service.deliveries(context, webhook_id, None, cursor, PER_PAGE)
    return page(
        request,
        "webhook.html",
        hook=service.get(context, webhook_id),
        deliveries=deliveries,
        next=following,
        here=f"{request.url.path}?{request.url.query}",
        events=EVENTS,
    )
