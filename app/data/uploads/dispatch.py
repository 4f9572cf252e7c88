"""The relay's part in checks: it sends messages for pending uploads until a worker has checked them."""

from app.core.broker import CHECKS, Broker
from app.core.database import Database
from app.data.uploads import repository


def announce(database: Database, broker: Broker, again_after: float) -> None:
    """Send a message for each upload that is due, and again after ``again_after`` seconds if no worker claims it.

    A duplicate does no harm. Nothing is sent again while the broker holds a message for each waiting upload.
    """
    with database.reading() as session:
        due = repository.due(session)
        waiting = repository.count_unclaimed(session) if due else 0
    if not due:
        return
    lost = not all(due.values()) and broker.pending(CHECKS) < waiting
    for upload_id, first in due.items():
        if first or lost:
            broker.send_check(upload_id)
    with database.writing() as session:
        repository.postpone(session, due, again_after)
