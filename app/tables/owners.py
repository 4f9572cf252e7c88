"""Whose a row is: the table of owners, and the filter that every query of a request passes through.

An owner is a person, a team or a project; several API keys may act for one. While the service is open, which it is on
loopback as long as no key was made, everything belongs to the owner `LOCAL`.

How a new domain uses this: let its main table inherit `Owned` beside `Base`, add `owned_index` for its lists, and
do all queries on the sessions of the route's ``Ctx``. On such a session, which is bound to the request's owner,

- every ORM select, update and delete of an `Owned` table, in joins and subqueries too, sees the owner's rows alone,
  so that a foreign id is simply not there, and a 404;
- every new object of an `Owned` table that is added becomes the owner's.

Tables that hang on an owned row (artifacts, events) need no column: query them through their parent, by a join, or
after the parent was found on the same session. Core statements on ``Table`` objects and raw SQL are not filtered;
do not use them there. Relay and workers work on sessions without an owner, which see all.
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
    """A person, a team or a project. A limit that is null is the one of the settings."""

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
    """When a worker last took one of the owner's experiments."""


class Owned:
    """Mixin of tables whose rows have an owner."""

    owner_id: Mapped[str] = mapped_column(String(36), ForeignKey("owners.id"), default=LOCAL)


def owned_index(name: str, *columns: str) -> Index:
    """An index for lists: the owner comes first, because every list is of one owner."""
    return Index(name, "owner_id", *columns)


@event.listens_for(Session, "do_orm_execute")
def _filter(state: ORMExecuteState) -> None:
    owner: str | None = state.session.info.get(OWNER)
    if owner is None or state.is_column_load:
        return
    if state.is_select or state.is_update or state.is_delete:
        state.statement = state.statement.options(_only(owner))
    elif _is_owned(state):
        raise RuntimeError("a request adds owned rows with session.add, so that they get their owner")


@lru_cache(1024)
def _only(owner: str) -> LoaderCriteriaOption:
    return with_loader_criteria(Owned, lambda table: table.owner_id == owner, include_aliases=True)


def _is_owned(state: ORMExecuteState) -> bool:
    mapper = state.bind_mapper
    return mapper is not None and issubclass(mapper.class_, Owned)


@event.listens_for(Session, "before_flush")
def _stamp(session: Session, _context: Any, _instances: Any) -> None:
    owner: str | None = session.info.get(OWNER)
    if owner is None:
        return
    for row in session.new:
        if isinstance(row, Owned):
            row.owner_id = owner
