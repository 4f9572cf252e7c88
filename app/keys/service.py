"""Making, listing and revoking keys, and setting owners' limits. Every function has committed when it returns.

They work on the whole database: the command line uses them where the service's settings are, and the routes need
the scope ``admin``.
"""

from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from app.core.database import Database, new_id, utcnow
from app.core.errors import NotFoundError
from app.core.owners import Owner
from app.core.validation import shown
from app.keys import repository
from app.keys.schemas import KeyOut, KeyRequest, LimitsIn, NewKeyOut, OwnerOut
from app.keys.secrets import Pepper, prefix_of
from app.keys.tables import ApiKey


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


def page(
    database: Database, after: tuple[datetime, str] | None, limit: int
) -> tuple[list[KeyOut], tuple[datetime, str] | None]:
    """At most ``limit`` keys, the newest first, and the position of the last if there are more."""
    with database.whole.reading() as session:
        rows = repository.page(session, after, limit + 1)
        kept = [present(row) for row in rows[:limit]]
    more = len(rows) > limit
    return kept, (kept[-1].created_at, kept[-1].id) if more else None


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


def owners(database: Database, after: str | None, limit: int) -> tuple[list[OwnerOut], str | None]:
    """At most ``limit`` owners by name, and the name of the last if there are more."""
    with database.whole.reading() as session:
        rows = repository.owners(session, after, limit + 1)
        kept = [_owner(row) for row in rows[:limit]]
    return kept, kept[-1].name if len(rows) > limit else None


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
    row = repository.owner(session, name)
    if row is None:
        raise NotFoundError(f"there is no owner {shown(name)}")
    return row


def _owner(row: Owner) -> OwnerOut:
    limits = LimitsIn(**{field: getattr(row, f"max_{field}") for field in LimitsIn.model_fields})
    return OwnerOut(name=row.name, created_at=row.created_at, limits=limits)


def _found(session: Session, name: str) -> ApiKey:
    row = session.get(ApiKey, name) or repository.by_prefix(session, prefix_of(name) or name)
    if row is None:
        raise NotFoundError(f"there is no API key {shown(name)}")
    return row
