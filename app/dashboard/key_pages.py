"""The page of API keys, owners and limits."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from app.core.context import Ctx
from app.core.security import ADMIN, READ, SCOPES, needs, public
from app.dashboard.rendering import PageRoute, page
from app.team.access import BASIC
from app.team.keys import service as keys
from app.team.keys.schemas import LimitsIn

router = APIRouter(route_class=PageRoute, include_in_schema=False)
PER_PAGE = 50


@router.get("/keys")
def show_keys(
    request: Request,
    context: Ctx,
    owner: Annotated[str | None, Query(description="Whose limits to change.")] = None,
    cursor: Annotated[str | None, Query()] = None,
    owners_cursor: Annotated[str | None, Query()] = None,
) -> Response:
    """The caller, their usage of quotas and, for an administrator, every key and owner."""
    admin = ADMIN in context.principal.scopes
    all_keys, next_cursor = keys.list_keys(context, PER_PAGE, cursor) if admin else (None, None)
    owners, next_owners_cursor = keys.list_owners(context, PER_PAGE, owners_cursor) if admin else (None, None)
    return page(
        request,
        "keys.html",
        identity=keys.describe_caller(context),
        scopes=SCOPES,
        keys=all_keys,
        owners=owners,
        edited_owner=keys.get_owner(context.database, owner) if admin and owner is not None else None,
        limits={name: str(field.description) for name, field in LimitsIn.model_fields.items()},
        next_cursor=next_cursor,
        next_owners_cursor=next_owners_cursor,
    )


@router.post("/logout")
@needs(READ)
def log_out() -> RedirectResponse:
    """Make the browser forget the key, which it sends as a password. The server keeps no session.

    `Clear-Site-Data` does that where the browser knows it and the connection is to be trusted (TLS, or this machine).
    """
    return RedirectResponse("/logout", status_code=303, headers={"Clear-Site-Data": '"cookies", "storage"'})


@router.get("/logout")
@public
def logged_out(request: Request) -> Response:
    """Say that the browser is logged out; one that still sends a key is made to drop it, by refusing it with 401."""
    if "authorization" not in request.headers:
        return page(request, "logged_out.html")
    response = page(request, "logged_out.html", status=401)
    response.headers["WWW-Authenticate"] = BASIC
    return response
