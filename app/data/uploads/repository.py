"""Queries about uploads. On a request's session they see only the owner's rows.

The claim of a check is fenced as that of an experiment is (`app.experiments.lifecycle`): ``attempts`` is the token.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, func, select, tuple_, update
from sqlalchemy.orm import Session, aliased

from app.core.database import database_now, from_now
from app.tables.experiments import Experiment, Label
from app.tables.uploads import PENDING, Upload

BATCH = 100


def get(session: Session, kind: str, upload_id: str) -> Upload | None:
    return session.scalars(select(Upload).where(Upload.id == upload_id, Upload.kind == kind)).one_or_none()


def lock(session: Session, kind: str, upload_id: str) -> Upload | None:
    """The row, locked until the transaction ends, so that it is not deleted while experiments begin to name it."""
    query = select(Upload).where(Upload.id == upload_id, Upload.kind == kind).with_for_update()
    return session.scalars(query).one_or_none()


def find_same(session: Session, kind: str, request_hash: str) -> Upload | None:
    """The upload of the same file with the same fields."""
    query = select(Upload).where(Upload.kind == kind, Upload.request_hash == request_hash)
    return session.scalars(query).one_or_none()


def page(
    session: Session, kind: str, status: str | None, after: tuple[datetime, str] | None, limit: int
) -> Sequence[Upload]:
    """At most ``limit`` uploads after the position ``after``, newest first."""
    query = select(Upload).where(Upload.kind == kind)
    if status is not None:
        query = query.where(Upload.status == status)
    if after is not None:
        query = query.where(tuple_(Upload.created_at, Upload.id) < after)
    return session.scalars(query.order_by(Upload.created_at.desc(), Upload.id.desc()).limit(limit)).all()


def experiment_using(session: Session, kind: str, upload_id: str) -> str | None:
    """The id of an experiment whose spec names the upload, or None."""
    return session.scalar(
        select(Experiment.id)
        .join(Label, Label.experiment_id == Experiment.id)
        .where(Label.kind == kind, Label.key == upload_id)
        .limit(1)
    )


def due(session: Session) -> dict[str, bool]:
    """Pending uploads whose message is due, oldest first; True for those that had no message before."""
    query = select(Upload.id, Upload.due_at == Upload.created_at)
    query = query.where(Upload.status == PENDING, Upload.due_at <= from_now())
    rows = session.execute(query.order_by(Upload.due_at).limit(BATCH))
    return {row[0]: row[1] for row in rows}


def count_unclaimed(session: Session) -> int:
    """The number of pending uploads that no worker has claimed."""
    query = select(func.count()).where(Upload.status == PENDING, ~_claimed())
    return session.scalar(query) or 0


def postpone(session: Session, ids: Iterable[str], seconds: float) -> None:
    """Make the next message of these due in ``seconds``."""
    session.execute(update(Upload).where(Upload.id.in_(ids), ~_claimed()).values(due_at=from_now(seconds)))


def claim_next(session: Session, hint: str, seconds: float) -> Upload | None:
    """Claim a pending upload for ``seconds``, after which it is due again. None if there is none.

    Owners take turns, so that many uploads of one owner do not delay another's. ``hint`` is the upload that the message
    named; it comes first among its owner's.
    """
    until = database_now(session) + timedelta(seconds=seconds)
    for owner_id in _waiting_owners(session):
        query = select(Upload.id).where(Upload.owner_id == owner_id, Upload.status == PENDING, ~_claimed())
        query = query.order_by(Upload.id != hint, Upload.created_at, Upload.id).limit(1)
        upload_id = session.scalar(query.with_for_update(skip_locked=True))
        if upload_id is not None:
            claim = update(Upload).where(Upload.id == upload_id)
            claim = claim.values(claimed_until=until, due_at=until, attempts=Upload.attempts + 1)
            return session.scalars(claim.returning(Upload)).one()
    return None


def _waiting_owners(session: Session) -> Sequence[str]:
    """Owners of uploads that can be claimed: first who has the fewest checks running, then who had one longest ago."""
    uploads = aliased(Upload)
    of_owner = uploads.owner_id == Upload.owner_id
    running = select(func.count()).where(of_owner, uploads.status == PENDING, _claimed(uploads))
    last = select(func.max(uploads.checked_at)).where(of_owner)
    query = select(Upload.owner_id).where(Upload.status == PENDING, ~_claimed()).group_by(Upload.owner_id)
    turns = (running.scalar_subquery(), last.scalar_subquery().nulls_first(), func.min(Upload.created_at))
    return session.scalars(query.order_by(*turns)).all()


def still_owned(session: Session, upload: Upload) -> Upload | None:
    """The row, locked, if the attempt that claimed ``upload`` still owns it."""
    query = select(Upload).where(Upload.id == upload.id, Upload.status == PENDING).with_for_update()
    row = session.scalars(query).one_or_none()
    return row if row is not None and row.attempts == upload.attempts else None


def _claimed(uploads: type[Upload] = Upload) -> ColumnElement[bool]:
    return uploads.claimed_until.is_not(None) & (uploads.claimed_until > from_now())
