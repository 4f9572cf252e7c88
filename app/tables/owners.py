"""Owners, and the filter by owner that applies to every query of a request.

An owner is a person, a team or a project, and can have several API keys. While the service is open (on loopback, until
the first key is created) everything belongs to the owner `LOCAL`.

To use this in a new domain, let its main table inherit `Owned` beside `Base`, add an `owned_index` for its lists, and
query only on the sessions of the route's ``Ctx``. Such a session is bound to the owner of the request:

- Every ORM select, update and delete of an `Owned` table, also in joins and subqueries, sees only the rows of the
  owner. So the id of another owner's row is a 404.
- Every object of an `Owned` table that is added gets the owner.

Tables that depend on an owned row (artifacts, events) need no owner column: query them by a join with the owned table,
or after the owned row was found on the same session. Core statements on ``Table`` objects and raw SQL are not
filtered; do not use them there. The relay and the workers use sessions without an owner, which see all rows.
"""

from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, event
from sqlalchemy.orm import (
    LoaderCriteriaOption,
    Mapped,
    ORMExecuteState,
    Session,
    mapped_column,
    with_loader_criteria,
)

from app.core.database import OWNER, Base, UtcDateTime
from app.core.security import LOCAL


class Owner(Base):
    """A person, a team or a project. Null limits are those of the settings."""

    __tablename__ = "owners"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    max_queued: Mapped[int | None] = mapped_column()
    max_running: Mapped[int | None] = mapped_column()
    max_device_seconds: Mapped[int | None] = mapped_column(BigInteger)
    max_bytes: Mapped[int | None] = mapped_column(BigInteger)
    max_webhooks: Mapped[int | None] = mapped_column()
    max_requests: Mapped[int | None] = mapped_column()
    served_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """When a worker last claimed one of the owner's experiments."""


class Owned:
    """Mixin of tables whose rows have an owner."""

    owner_id: Mapped[str] = mapped_column(String(36), ForeignKey("owners.id"), default=LOCAL)


def owned_index(name: str, *columns: str) -> Index:
    """An index for lists. The owner is its first column, because a list contains the rows of one owner."""
    return Index(name, "owner_id", *columns)


@event.listens_for(Session, "do_orm_execute")
def _filter_by_owner(state: ORMExecuteState) -> None:
    owner: str | None = state.session.info.get(OWNER)
    if owner is None or state.is_column_load:
        return
    if state.is_select or state.is_update or state.is_delete:
        state.statement = state.statement.options(_criteria(owner))
    elif _is_owned(state):
        raise RuntimeError("rows with an owner must be added with session.add, which sets the owner")


@lru_cache(1024)
def _criteria(owner: str) -> LoaderCriteriaOption:
    return with_loader_criteria(Owned, lambda table: table.owner_id == owner, include_aliases=True)


def _is_owned(state: ORMExecuteState) -> bool:
    mapper = state.bind_mapper
    return mapper is not None and issubclass(mapper.class_, Owned)


@event.listens_for(Session, "before_flush")
def _set_owner(session: Session, _context: Any, _instances: Any) -> None:
    owner: str | None = session.info.get(OWNER)
    if owner is None:
        return
    for row in session.new:
        if isinstance(row, Owned):
            row.owner_id = owner
