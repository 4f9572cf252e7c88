"""Queries about uploads. On a request's session they see the owner's rows alone."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, func, select, tuple_, update
from sqlalchemy.orm import Session

from app.core.database import utcnow
from app.tables.experiments import Experiment, Label
from app.tables.uploads import PENDING, Upload

BATCH = 100


def get(session: Session, kind: str, upload_id: str) -> Upload | None:
    return session.scalars(select(Upload).where(Upload.id == upload_id, Upload.kind == kind)).one_or_none()


def lock(session: Session, kind: str, upload_id: str) -> Upload | None:
    """The row, locked until the transaction ends: experiments begin to name it, or it is deleted."""
    query = select(Upload).where(Upload.id == upload_id, Upload.kind == kind).with_for_update()
    return session.scalars(query).one_or_none()


def same(session: Session, kind: str, request_hash: str) -> Upload | None:
    """The upload of the same file with the same fields."""
    query = select(Upload).where(Upload.kind == kind, Upload.request_hash == request_hash)
    return session.scalars(query).one_or_none()


def page(
    session: Session, kind: str, status: str | None, after: tuple[datetime, str] | None, limit: int
) -> Sequence[Upload]:
    """At most ``limit`` uploads behind ``after``, the newest first."""
    query = select(Upload).where(Upload.kind == kind)
    if status is not None:
        query = query.where(Upload.status == status)
    if after is not None:
        query = query.where(tuple_(Upload.created_at, Upload.id) < after)
    return session.scalars(query.order_by(Upload.created_at.desc(), Upload.id.desc()).limit(limit)).all()


def user(session: Session, kind: str, upload_id: str) -> str | None:
    """An experiment whose spec names the upload, or None."""
    return session.scalar(
        select(Experiment.id)
        .join(Label, Label.experiment_id == Experiment.id)
        .where(Label.kind == kind, Label.key == upload_id)
        .limit(1)
    )


def due(session: Session) -> dict[str, bool]:
    """Pending uploads that the workers should hear of by now, the oldest first; True if it is for the first time."""
    query = select(Upload.id, Upload.due_at == Upload.created_at)
    query = query.where(Upload.status == PENDING, Upload.due_at <= utcnow())
    rows = session.execute(query.order_by(Upload.due_at).limit(BATCH))
    return {row[0]: row[1] for row in rows}


def waiting(session: Session) -> int:
    """How many uploads no worker has in hand."""
    query = select(func.count()).where(Upload.status == PENDING, ~_claimed())
    return session.scalar(query) or 0


def postpone(session: Session, ids: Iterable[str], seconds: float) -> None:
    """Announce these again only in so many seconds, if they are pending then."""
    later = utcnow() + timedelta(seconds=seconds)
    session.execute(update(Upload).where(Upload.id.in_(ids), ~_claimed()).values(due_at=later))


def claim(session: Session, upload_id: str, seconds: float) -> Upload | None:
    """Take a pending upload that nobody has in hand; it is announced again if its check does not end in time."""
    until = utcnow() + timedelta(seconds=seconds)
    return session.scalars(
        update(Upload)
        .where(Upload.id == upload_id, Upload.status == PENDING, ~_claimed())
        .values(claimed_until=until, due_at=until, attempts=Upload.attempts + 1)
        .returning(Upload)
    ).one_or_none()


def held(session: Session, upload: Upload) -> Upload | None:
    """The row, locked, if it is still this attempt's."""
    query = select(Upload).where(Upload.id == upload.id, Upload.status == PENDING).with_for_update()
    row = session.scalars(query).one_or_none()
    return row if row is not None and row.attempts == upload.attempts else None


def _claimed() -> ColumnElement[bool]:
    return Upload.claimed_until.is_not(None) & (Upload.claimed_until > utcnow())
