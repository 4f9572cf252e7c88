"""The relay's part in checks: pending uploads are announced to the workers until one has checked them."""

from app.core.broker import CHECKS, Broker
from app.core.database import Database
from app.data.uploads import repository


def announce(database: Database, broker: Broker, again_after: float) -> None:
    """Send what is due, and again in so many seconds if nobody has taken it by then.

    A message that is sent twice does no harm; while the broker holds enough of them none is sent again.
    """
    with database.reading() as session:
        due = repository.due(session)
        waiting = repository.waiting(session) if due else 0
    if not due:
        return
    lost = not all(due.values()) and broker.pending(CHECKS) < waiting
    for upload_id, first in due.items():
        if first or lost:
            broker.send_check(upload_id)
    with database.writing() as session:
        repository.postpone(session, due, again_after)
