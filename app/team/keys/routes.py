"""Keys and owners, for administrators, and GET /v1/me."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Request, Response

from app.core.context import Ctx
from app.core.openapi import problems
from app.core.routing import Cursor, JsonBody, Limit, paged
from app.core.security import ADMIN, needs
from app.team.keys import service
from app.team.keys.schemas import KeyOut, KeyRequest, Keys, LimitsIn, Me, NewKeyOut, OwnerOut, Owners
from app.team.keys.secrets import Pepper

router = APIRouter(prefix="/v1", tags=["keys"])

KEYS: dict[str, Any] = {
    "reader": {
        "summary": "A read-only key for 90 days",
        "value": {"owner": "vision-team", "scopes": ["read"], "label": "dashboard", "expires_in_days": 90},
    }
}
LIMITS: dict[str, Any] = {
    "small": {
        "summary": "Two running and ten queued experiments, one day of device time in 30 days",
        "value": {"running": 2, "queued": 10, "device_seconds": 86400},
    }
}
KeyId = Annotated[str, Path(description="The key's id, or its prefix.")]
OwnerName = Annotated[str, Path(description="The owner's name.")]


@router.get("/me", summary="Who am I?", responses=problems(422))
def me(context: Ctx) -> Me:
    """The owner and the scopes of the key, and the usage of the owner's quotas."""
    return service.describe_caller(context)


@router.post("/keys", status_code=201, summary="Create an API key", responses=problems(400, 413, 415, 422))
@needs(ADMIN)
def create(
    context: Ctx,
    body: Annotated[KeyRequest, Body(openapi_examples=KEYS)],
    response: Response,
    _json: JsonBody,
) -> NewKeyOut:
    """The response contains the key, which cannot be shown again. Once the first key exists, every request requires a
    key."""
    key = service.create(context.database, Pepper(context.settings), body)
    response.headers["Location"] = f"/v1/keys/{key.prefix}"
    return key


@router.get("/keys", response_model=Keys, summary="List API keys", responses=problems(400, 422))
@needs(ADMIN)
def listing(request: Request, context: Ctx, limit: Limit = 50, cursor: Cursor = None) -> Response:
    """Keys of all owners, newest first, including revoked and expired keys."""
    keys, following = service.list_keys(context, limit, cursor)
    return paged(request, following, lambda link: Keys(keys=keys, next=link))


@router.get("/keys/{key_id}", summary="One API key", responses=problems(404, 422))
@needs(ADMIN)
def get(key_id: KeyId, context: Ctx) -> KeyOut:
    """A key without its secret part."""
    return service.get(context.database, key_id)


@router.post("/keys/{key_id}:revoke", summary="Revoke an API key", responses=problems(404, 422))
@needs(ADMIN)
def revoke(key_id: KeyId, context: Ctx) -> KeyOut:
    """The key is rejected from now on; other API processes reject it within a second. Idempotent."""
    return service.revoke(context.database, key_id)


@router.get("/owners", response_model=Owners, summary="List owners", responses=problems(400, 422))
@needs(ADMIN)
def owners(request: Request, context: Ctx, limit: Limit = 50, cursor: Cursor = None) -> Response:
    """All owners, sorted by name, with the limits set for them."""
    page, following = service.list_owners(context, limit, cursor)
    return paged(request, following, lambda link: Owners(owners=page, next=link))


@router.get("/owners/{owner}/limits", summary="An owner's limits", responses=problems(404, 422))
@needs(ADMIN)
def get_limits(owner: OwnerName, context: Ctx) -> OwnerOut:
    """The limits set for the owner; null is the limit of the settings."""
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
    """Replaces all limits of the owner; an omitted limit reverts to that of the settings."""
    return service.set_limits(context.database, owner, limits)
