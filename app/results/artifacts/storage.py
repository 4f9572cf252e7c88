"""Deletes stored content that no row needs any more, although a worker may be about to store the same content again.

Content lies under its own hash, so a file that is deleted for one experiment may be written for another at that very
moment. Both sides hold the content's lock for the end of a transaction: who deletes looks for rows and deletes; who
writes looks for the object, writes it again if it has just gone, and adds the row.
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


def hold(session: Session, keys: Iterable[str]) -> None:
    """Lock contents until the transaction ends. SQLite has one writer at a time anyway."""
    if session.get_bind().dialect.name == "postgresql":
        for key in sorted(keys):
            session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(key, 0))))


def needed(session: Session, keys: Iterable[str]) -> set[str]:
    """Those of the contents that some row still has."""
    digests = {key.rpartition("/")[2]: key for key in keys}
    rows = session.scalars(
        select(Artifact.sha256).where(Artifact.sha256.in_(digests), Artifact.expired_at.is_(None)).distinct()
    )
    return {digests[digest] for digest in rows}


def weigh(session: Session, experiments: Iterable[str]) -> None:
    """Write down how many bytes the files of these experiments have. For whoever adds files or lets them go."""
    session.flush()
    mine = (Artifact.experiment_id == Experiment.id, Artifact.expired_at.is_(None))
    size = select(func.coalesce(func.sum(Artifact.size), 0)).where(*mine).scalar_subquery()
    for chunk in _chunks(sorted(experiments)):
        session.execute(update(Experiment).where(Experiment.id.in_(chunk)).values(stored_bytes=size))


def drop(database: Database, objects: Objects, keys: Iterable[str]) -> int:
    """Delete those of the contents that no row has, after the transaction that removed the rows. Returns how many.

    What cannot be deleted is logged and stays an orphan, which `app.operations.housekeeping` collects.
    """
    dropped = 0
    for chunk in _chunks(sorted(keys)):
        try:
            with database.whole.writing() as session:
                hold(session, chunk)
                gone = set(chunk) - needed(session, chunk)
                objects.delete_all(gone)
            dropped += len(gone)
        except ObjectStoreError as error:
            log.warning("files were left behind: %s", error)
    return dropped


def _chunks(keys: list[str]) -> Iterable[list[str]]:
    return (keys[start : start + CHUNK] for start in range(0, len(keys), CHUNK))
