"""What a worker tidies up on its own machine, whose folder nobody else sees."""

import logging

from sqlalchemy.exc import SQLAlchemyError

from app.core.database import Database
from app.operations.housekeeping.local import fetched, sweep
from app.operations.housekeeping.report import Tally
from app.settings import Settings

EVERY_SECONDS = 6 * 3600.0
GRACE_SECONDS = 24 * 3600.0
log = logging.getLogger(__name__)


def tidy_up(settings: Settings) -> None:
    """Delete fetched data sets whose uploads are deleted, and what a killed fetch left."""
    database, tally = Database(settings.database), Tally()
    try:
        sweep(fetched(settings, database), GRACE_SECONDS, True, tally)
    except SQLAlchemyError as error:
        log.warning("the fetched data sets were not looked through: %s", str(error).partition("\n")[0])
    finally:
        database.close()
    for item in tally.items:
        log.info("%s: %d deleted, %d bytes", item.what, item.count, item.bytes)
