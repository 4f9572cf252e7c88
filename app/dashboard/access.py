"""The page of keys, owners and limits."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.core.context import Ctx
from app.core.security import ADMIN, SCOPES
from app.dashboard.pages import PageRoute, page
from app.keys import routes as keys
from app.keys.schemas import LimitsIn

router = APIRouter(route_class=PageRoute, include_in_schema=False)
PER_PAGE = 50


@router.get("/keys")
def people(
    request: Request,
    context: Ctx,
    owner: Annotated[str | None, Query(description="Whose limits to change.")] = None,
    cursor: Annotated[str | None, Query()] = None,
    owners_cursor: Annotated[str | None, Query()] = None,
) -> Response:
    """Who the reader is, how much of the quotas is used, and, for an administrator, every key and owner."""
    admin = ADMIN in context.principal.scopes
    listed = keys.listing(context, PER_PAGE, cursor) if admin else None
    owners = keys.owners(context, PER_PAGE, owners_cursor) if admin else None
    return page(
        request,
        "keys.html",
        me=keys.me(context),
        scopes=SCOPES,
        listed=listed,
        owners=owners,
        changing=keys.get_limits(owner, context) if admin and owner is not None else None,
        limits={name: str(field.description) for name, field in LimitsIn.model_fields.items()},
        more=_cursor(listed.next if listed else None),
        more_owners=_cursor(owners.next if owners else None),
    )


def _cursor(link: str | None) -> str | None:
    """The cursor in a link to a next page of the API."""
    return link.partition("cursor=")[2].partition("&")[0] if link is not None else None
