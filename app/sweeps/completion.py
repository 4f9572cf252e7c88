"""The webhook event sent when all experiments of a sweep or study have ended."""

from sqlalchemy.orm import Session

from app.core.database import Database
from app.sweeps.presentation import path_of, progress_of
from app.tables.sweeps import Sweep
from app.webhooks import outbox, repository


def finish_sweeps(database: Database) -> None:
    """Send the event of every sweep and study whose last experiment has ended. The relay calls this regularly."""
    with database.reading() as session:
        ids = repository.sweeps_to_check(session)
    for batch_id in ids:
        with database.writing() as session:
            _finish(session, batch_id)


def _finish(session: Session, batch_id: str) -> None:
    """Send the event if all experiments of the batch have ended.

    Every ending writes a row in the transaction that ends the experiment. A sender that sees all experiments ended
    therefore sees all of these rows in a later query, and deletes them together with the one event that it writes.
    """
    batch = session.get(Sweep, batch_id, with_for_update=True)  # so that only one sender sends it
    ids = repository.list_endings(session, batch_id)
    if not ids:
        return
    progress = progress_of(session, [batch_id])[batch_id]
    if progress.status in ("queued", "running"):
        repository.delete_endings(session, batch_id, ids)
        return
    repository.delete_endings(session, batch_id)
    if batch is None:  # deleted meanwhile
        return
    data = {
        "id": batch_id,
        "name": batch.name,
        "status": progress.status,
        "experiments": progress.experiments.model_dump(),
        "created_at": batch.created_at.isoformat(),
        "links": {"self": path_of(batch), "experiments": f"/v1/experiments?sweep={batch_id}"},
    }
    outbox.emit(session, batch.owner_id, f"{batch.kind}.finished", lambda: data)
