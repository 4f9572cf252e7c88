"""Deletes stored contents that no row refers to, even while a worker stores the same content again.

An object's key is the hash of its content, so a file that is deleted for one experiment can be written for another at
the same moment. Both sides lock the content until their transaction ends. The deleting side looks for rows and then
deletes the object; the writing side writes the object unless it exists, and then adds its row.
"""

import logging
from collections.abc import Iterable

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.core.database import Database
from app.core.objects import Objects, ObjectStoreError
from app.tables.artifacts import Artifact
from app.tables.experiments import Experiment

log = logging.getLogger(__name__)
CHUNK = 100


def lock_contents(session: Session, keys: Iterable[str]) -> None:
    """Lock contents until the transaction ends. SQLite needs no lock: it has one writer at a time."""
    if session.get_bind().dialect.name == "postgresql":
        for key in sorted(keys):  # in one order, so that two transactions cannot deadlock
            session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(key, 0))))


def referenced(session: Session, keys: Iterable[str]) -> set[str]:
    """The contents that at least one row refers to."""
    digests = {key.rpartition("/")[2]: key for key in keys}
    rows = session.scalars(
        select(Artifact.sha256).where(Artifact.sha256.in_(digests), Artifact.expired_at.is_(None)).distinct()
    )
    return {digests[digest] for digest in rows}


def update_stored_bytes(session: Session, experiment_ids: Iterable[str]) -> None:
    """Recompute `Experiment.stored_bytes`. Required after adding, deleting or expiring files."""
    session.flush()
    of_experiment = (Artifact.experiment_id == Experiment.id, Artifact.expired_at.is_(None))
    size = select(func.coalesce(func.sum(Artifact.size), 0)).where(*of_experiment).scalar_subquery()
    for chunk in _chunks(sorted(experiment_ids)):
        session.execute(update(Experiment).where(Experiment.id.in_(chunk)).values(stored_bytes=size))


def delete_unreferenced(database: Database, objects: Objects, keys: Iterable[str]) -> int:
    """Delete the contents that no row refers to. Returns their number. Call it after the rows are deleted.

    A content that cannot be deleted is logged and becomes an orphan, which `app.operations.housekeeping` collects.
    """
    deleted = 0
    for chunk in _chunks(sorted(keys)):
        try:
            with database.whole.writing() as session:
                lock_contents(session, chunk)
                unreferenced = set(chunk) - referenced(session, chunk)
                objects.delete_all(unreferenced)
            deleted += len(unreferenced)
        except ObjectStoreError as error:
            log.warning("stored files could not be deleted: %s", error)
    return deleted


def _chunks(keys: list[str]) -> Iterable[list[str]]:
    return (keys[start : start + CHUNK] for start in range(0, len(keys), CHUNK))
