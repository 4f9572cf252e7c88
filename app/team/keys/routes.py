"""Keys and owners, for administrators, and GET /v1/me."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Path, Response

from app.core.context import Ctx
from app.core.openapi import problems
from app.core.query_parameters import reject_unknown_parameters
from app.core.routing import Cursor, JsonBody, Limit
from app.core.security import ADMIN, needs
from app.team.keys import service
from app.team.keys.schemas import KeyOut, KeyRequest, Keys, LimitsIn, Me, NewKeyOut, OwnerOut, Owners
from app.team.keys.secrets import Pepper

router = APIRouter(prefix="/v1", tags=["keys"], dependencies=[Depends(reject_unknown_parameters)])

KEYS: dict[str, Any] = {
    "reader": {
        "summary": "A key that may only look, for 90 days",
        "value": {"owner": "vision-team", "scopes": ["read"], "label": "dashboard", "expires_in_days": 90},
    }
}
LIMITS: dict[str, Any] = {
    "small": {
        "summary": "Two experiments at a time, ten in the queue, one GPU day in 30 days",
        "value": {"running": 2, "queued": 10, "device_seconds": 86400},
    }
}
KeyId = Annotated[str, Path(description="The key's id, or its prefix.")]
OwnerName = Annotated[str, Path(description="The owner's name.")]


@router.get("/me", summary="Who am I?", responses=problems(422))
def me(context: Ctx) -> Me:
    """The owner that the key acts for, the key's scopes, and how much of the owner's quotas is used."""
    return service.describe_caller(context)


@router.post("/keys", status_code=201, summary="Make an API key", responses=problems(400, 413, 415, 422))
@needs(ADMIN)
def create(
    context: Ctx,
    asked: Annotated[KeyRequest, Body(openapi_examples=KEYS)],
    response: Response,
    _json: JsonBody,
) -> NewKeyOut:
    """The answer holds the key, this once. The first key that is made closes the service to all without one."""
    made = service.create(context.database, Pepper(context.settings), asked)
    response.headers["Location"] = f"/v1/keys/{made.prefix}"
    return made


@router.get("/keys", summary="List API keys", responses=problems(400, 422))
@needs(ADMIN)
def listing(context: Ctx, limit: Limit = 50, cursor: Cursor = None) -> Keys:
    """Keys of all owners, the newest first, also those that were revoked or have expired."""
    keys, following = service.list_keys(context, limit, cursor)
    return Keys(keys=keys, next=_link("keys", following, limit))


@router.get("/keys/{key_id}", summary="One API key", responses=problems(404, 422))
@needs(ADMIN)
def get(key_id: KeyId, context: Ctx) -> KeyOut:
    """What is known of a key; never its secret part."""
    return service.get(context.database, key_id)


@router.post("/keys/{key_id}:revoke", summary="Revoke an API key", responses=problems(404, 422))
@needs(ADMIN)
def revoke(key_id: KeyId, context: Ctx) -> KeyOut:
    """The key is refused from now on, by other API processes within a second. Doing it twice does no harm."""
    return service.revoke(context.database, key_id)


@router.get("/owners", summary="List owners", responses=problems(400, 422))
@needs(ADMIN)
def owners(context: Ctx, limit: Limit = 50, cursor: Cursor = None) -> Owners:
    """Everyone whom keys act for, by name, with the limits of their own."""
    page, following = service.list_owners(context, limit, cursor)
    return Owners(owners=page, next=_link("owners", following, limit))


@router.get("/owners/{owner}/limits", summary="An owner's limits", responses=problems(404, 422))
@needs(ADMIN)
def get_limits(owner: OwnerName, context: Ctx) -> OwnerOut:
    """The owner's own limits; those that are null are as in the settings."""
    return service.get_owner(context.database, owner)


@router.put(
    "/owners/{owner}/limits", summary="Set an owner's limits", responses=problems(400, 404, 413, 415, 422)
)
@needs(ADMIN)
def set_limits(
    owner: OwnerName,
    context: Ctx,
    limits: Annotated[LimitsIn, Body(openapi_examples=LIMITS)],
    _json: JsonBody,
) -> OwnerOut:
    """All of them at once; one that is left out is as in the settings again."""
    return service.set_limits(context.database, owner, limits)


def _link(what: str, cursor: str | None, limit: int) -> str | None:
    return f"/v1/{what}?cursor={cursor}&limit={limit}" if cursor is not None else None
