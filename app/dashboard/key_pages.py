"""The page of keys, owners and limits."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.core.context import Ctx
from app.core.security import ADMIN, SCOPES
from app.dashboard.rendering import PageRoute, page
from app.team.keys import service as keys
from app.team.keys.schemas import LimitsIn

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
    listed, more = keys.list_keys(context, PER_PAGE, cursor) if admin else (None, None)
    owners, more_owners = keys.list_owners(context, PER_PAGE, owners_cursor) if admin else (None, None)
    return page(
        request,
        "keys.html",
        me=keys.describe_caller(context),
        scopes=SCOPES,
        listed=listed,
        owners=owners,
        changing=keys.get_owner(context.database, owner) if admin and owner is not None else None,
        limits={name: str(field.description) for name, field in LimitsIn.model_fields.items()},
        more=more,
        more_owners=more_owners,
    )
