"""Making, listing and revoking keys, and setting owners' limits. Every function has committed when it returns.

They work on the whole database: the command line uses them where the service's settings are, and the routes need
the scope ``admin``.
"""

from datetime import timedelta

from sqlalchemy.orm import Session

from app.core.context import Context
from app.core.database import Database, new_id, utcnow
from app.core.errors import require
from app.core.pagination import paginate, paginate_by_age
from app.tables.keys import ApiKey
from app.tables.owners import Owner
from app.team import quotas
from app.team.keys import repository
from app.team.keys.schemas import KeyOut, KeyRequest, LimitsIn, Me, NewKeyOut, OwnerOut, Use
from app.team.keys.secrets import Pepper, prefix_of


def create(database: Database, pepper: Pepper, asked: KeyRequest) -> NewKeyOut:
    """Make a key, and its owner if it is new. The key is in the answer and nowhere else."""
    new, now = pepper.new(), utcnow()
    with database.whole.writing() as session:
        owner = repository.owner(session, asked.owner)
        if owner is None:
            owner = Owner(id=new_id(), name=asked.owner, created_at=now)
        row = ApiKey(
            prefix=new.prefix,
            digest=new.digest,
            owner=owner,
            label=asked.label,
            scopes=sorted(set(asked.scopes)),
            created_at=now,
            expires_at=now + timedelta(days=asked.expires_in_days) if asked.expires_in_days else None,
        )
        session.add(row)
        session.flush()
        return NewKeyOut(**present(row).model_dump(), key=new.key)


def describe_caller(context: Context) -> Me:
    """Who sent the request, and how much of the owner's quotas is used."""
    principal = context.principal
    limits = principal.limits
    with context.database.reading() as session:
        used = {
            "queued": Use(used=quotas.queued(session), limit=limits.queued),
            "running": Use(used=quotas.running(session), limit=limits.running),
            "device_seconds": Use(used=round(quotas.device_seconds(session), 1), limit=limits.device_seconds),
            "bytes": Use(used=quotas.stored_bytes(session), limit=limits.bytes),
            "webhooks": Use(used=quotas.webhooks(session), limit=limits.webhooks),
        }
    return Me(
        owner=principal.owner,
        key=principal.key,
        scopes=sorted(principal.scopes),
        open=principal.key is None,
        requests_per_minute=limits.requests,
        quotas=used,
    )


def list_keys(context: Context, limit: int, cursor: str | None) -> tuple[list[KeyOut], str | None]:
    """One page of all owners' keys, newest first, and the cursor of the next. Raises BadRequestError."""
    with context.database.whole.reading() as session:
        rows, following = paginate_by_age(
            context.signer, "keys", cursor, limit, lambda after, most: repository.page(session, after, most)
        )
        return [present(row) for row in rows], following


def all_keys(database: Database) -> list[KeyOut]:
    """Every key, newest first."""
    with database.whole.reading() as session:
        return [present(row) for row in repository.page(session, None, None)]


def get(database: Database, key_id: str) -> KeyOut:
    """A key by its id, its prefix, or by itself. Raises NotFoundError."""
    with database.whole.reading() as session:
        return present(_found(session, key_id))


def revoke(database: Database, name: str) -> KeyOut:
    """Make a key useless, by its id, its prefix, or by itself; doing it twice does no harm. Raises NotFoundError."""
    with database.whole.writing() as session:
        row = _found(session, name)
        row.revoked_at = row.revoked_at or utcnow()
        return present(row)


def list_owners(context: Context, limit: int, cursor: str | None) -> tuple[list[OwnerOut], str | None]:
    """One page of owners sorted by name, and the cursor of the next. Raises BadRequestError."""
    with context.database.whole.reading() as session:
        rows, following = paginate(
            context.signer,
            "owners",
            cursor,
            limit,
            lambda after, most: repository.owners(session, after[0] if after else None, most),
            lambda owner: [owner.name],
        )
        return [_owner(row) for row in rows], following


def set_limits(database: Database, name: str, limits: LimitsIn) -> OwnerOut:
    """Give an owner limits of its own, instead of those it had. Raises NotFoundError."""
    with database.whole.writing() as session:
        row = _named(session, name)
        for field, value in limits.model_dump().items():
            setattr(row, f"max_{field}", value)
        return _owner(row)


def get_owner(database: Database, name: str) -> OwnerOut:
    """Raises NotFoundError."""
    with database.whole.reading() as session:
        return _owner(_named(session, name))


def present(row: ApiKey) -> KeyOut:
    """A key as the API shows it."""
    fields = {name: getattr(row, name) for name in KeyOut.model_fields if name != "owner"}
    return KeyOut(**fields, owner=row.owner.name)


def _named(session: Session, name: str) -> Owner:
    return require(repository.owner(session, name), "owner", name)


def _owner(row: Owner) -> OwnerOut:
    limits = LimitsIn(**{field: getattr(row, f"max_{field}") for field in LimitsIn.model_fields})
    return OwnerOut(name=row.name, created_at=row.created_at, limits=limits)


def _found(session: Session, name: str) -> ApiKey:
    row = session.get(ApiKey, name) or repository.by_prefix(session, prefix_of(name) or name)
    return require(row, "API key", name)
