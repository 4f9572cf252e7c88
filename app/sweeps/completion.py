"""The event that announces that all experiments of a sweep or study have ended."""

from sqlalchemy.orm import Session

from app.core.database import Database
from app.sweeps import batch
from app.tables.sweeps import Sweep
from app.webhooks import outbox, repository


def finish_sweeps(database: Database) -> None:
    """Announce every sweep and study whose last experiment has ended. The relay calls this regularly."""
    with database.reading() as session:
        ids = repository.perhaps_finished(session)
    for sweep_id in ids:
        with database.writing() as session:
            finish_sweep(session, sweep_id)


def finish_sweep(session: Session, sweep_id: str) -> None:
    """Tell of a sweep or a study if all of its experiments have ended.

    Each ending has a row that became visible together with it. So whoever sees that all have ended sees all of those
    rows in a later query, and removes them with the one event that tells of them.
    """
    sweep = session.get(Sweep, sweep_id, with_for_update=True)  # two senders must not both tell of it
    ids = repository.endings(session, sweep_id)
    if not ids:
        return
    standing = batch.standings(session, [sweep_id])[sweep_id]
    if standing.status in ("queued", "running"):
        repository.forget_endings(session, sweep_id, ids)
        return
    repository.forget_endings(session, sweep_id)
    if sweep is None:  # deleted meanwhile
        return
    here = f"{batch.PATHS[sweep.kind]}/{sweep_id}"
    data = {
        "id": sweep_id,
        "name": sweep.name,
        "status": standing.status,
        "experiments": standing.experiments.model_dump(),
        "created_at": sweep.created_at.isoformat(),
        "links": {"self": here, "experiments": f"/v1/experiments?sweep={sweep_id}"},
    }
    outbox.emit(session, sweep.owner_id, f"{sweep.kind}.finished", lambda: data)
