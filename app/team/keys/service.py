"""Keys, owners and their limits. Every function has committed when it returns.

All functions but `describe_caller` see all owners: the routes require the scope ``admin``, and the command line calls
these functions directly where it has the settings of the service.
"""

from datetime import timedelta

from sqlalchemy.orm import Session

from app.core.context import Context
from app.core.database import Database, new_id, utcnow
from app.core.errors import InvalidError, require
from app.core.pagination import paginate, paginate_by_age
from app.tables.keys import ApiKey
from app.tables.owners import Owner
from app.team import quotas
from app.team.keys import repository
from app.team.keys.schemas import KeyOut, KeyRequest, LimitsIn, Me, NewKeyOut, OwnerOut, Use
from app.team.keys.secrets import Pepper, prefix_of


def create(database: Database, pepper: Pepper, request: KeyRequest) -> NewKeyOut:
    """Create a key, and its owner if it is new. The key is in the result and stored nowhere.

    Raises InvalidError for a new owner whose name differs from another one's only in case: people would mistake them.
    """
    new, now = pepper.new(), utcnow()
    with database.whole.writing() as session:
        owner = repository.owner(session, request.owner)
        if owner is None:
            if (other := repository.owner_in_any_case(session, request.owner)) is not None:
                message = f"differs only in case from {other.name!r}; allowed: that owner, or another name"
                raise InvalidError.of("owner", request.owner, message)
            owner = Owner(id=new_id(), name=request.owner, created_at=now)
        row = ApiKey(
            prefix=new.prefix,
            digest=new.digest,
            owner=owner,
            label=request.label,
            scopes=sorted(set(request.scopes)),
            created_at=now,
            expires_at=now + timedelta(days=request.expires_in_days) if request.expires_in_days else None,
        )
        session.add(row)
        session.flush()
        return NewKeyOut(**present(row).model_dump(), key=new.key)


def describe_caller(context: Context) -> Me:
    """The sender of the request, and the usage of the owner's quotas."""
    principal = context.principal
    with context.database.reading() as session:
        usage = quotas.usage(session)
    return Me(
        owner=principal.owner,
        key=principal.key,
        scopes=sorted(principal.scopes),
        open=principal.key is None,
        requests_per_minute=principal.limits.requests,
        quotas={name: Use(used=round(used, 1), limit=limit) for name, (used, limit) in usage.items()},
    )


def list_keys(context: Context, limit: int, cursor: str | None) -> tuple[list[KeyOut], str | None]:
    """One page of keys, newest first, and the cursor of the next page. Raises BadRequestError."""
    with context.database.whole.reading() as session:
        rows, following = paginate_by_age(
            context.signer, "keys", cursor, limit, lambda after, most: repository.page(session, after, most)
        )
        return [present(row) for row in rows], following


def all_keys(database: Database) -> list[KeyOut]:
    """All keys, newest first."""
    with database.whole.reading() as session:
        return [present(row) for row in repository.page(session, None, None)]


def get(database: Database, key_id: str) -> KeyOut:
    """The key with this id or prefix, or this key. Raises NotFoundError."""
    with database.whole.reading() as session:
        return present(_require_key(session, key_id))


def revoke(database: Database, name: str) -> KeyOut:
    """Revoke the key with this id or prefix, or this key. Idempotent. Raises NotFoundError."""
    with database.whole.writing() as session:
        row = _require_key(session, name)
        row.revoked_at = row.revoked_at or utcnow()
        return present(row)


def list_owners(context: Context, limit: int, cursor: str | None) -> tuple[list[OwnerOut], str | None]:
    """One page of owners sorted by name, and the cursor of the next page. Raises BadRequestError."""
    with context.database.whole.reading() as session:
        rows, following = paginate(
            context.signer,
            "owners",
            cursor,
            limit,
            lambda after, most: repository.owners(session, after[0] if after else None, most),
            lambda owner: [owner.name],
        )
        return [_present_owner(row) for row in rows], following


def set_limits(database: Database, name: str, limits: LimitsIn) -> OwnerOut:
    """Replace the limits of an owner. Raises NotFoundError."""
    with database.whole.writing() as session:
        row = _require_owner(session, name)
        for field, value in limits.model_dump().items():
            setattr(row, f"max_{field}", value)
        return _present_owner(row)


def get_owner(database: Database, name: str) -> OwnerOut:
    """Raises NotFoundError."""
    with database.whole.reading() as session:
        return _present_owner(_require_owner(session, name))


def present(row: ApiKey) -> KeyOut:
    """A key without its secret part."""
    fields = {name: getattr(row, name) for name in KeyOut.model_fields if name != "owner"}
    return KeyOut(**fields, owner=row.owner.name)


def _require_owner(session: Session, name: str) -> Owner:
    return require(repository.owner(session, name), "owner", name)


def _present_owner(row: Owner) -> OwnerOut:
    limits = LimitsIn(**{field: getattr(row, f"max_{field}") for field in LimitsIn.model_fields})
    return OwnerOut(name=row.name, created_at=row.created_at, limits=limits)


def _require_key(session: Session, name: str) -> ApiKey:
    row = session.get(ApiKey, name) or repository.by_prefix(session, prefix_of(name) or name)
    return require(row, "API key", name)
