"""Deletes unneeded files of a worker's own machine, which the service's housekeeping cannot see."""

import logging
from datetime import timedelta

from sqlalchemy.exc import SQLAlchemyError

from app.core.database import Database
from app.operations.housekeeping.local import collect_files, find_fetched_datasets
from app.operations.housekeeping.report import ReportBuilder
from app.settings import Settings

EVERY_SECONDS = 6 * 3600.0
GRACE = timedelta(hours=24)
log = logging.getLogger(__name__)


def collect_fetched_datasets(settings: Settings) -> None:
    """Delete downloaded datasets whose uploads are deleted, and partial files of interrupted downloads."""
    database, report = Database(settings.database), ReportBuilder()
    try:
        collect_files(find_fetched_datasets(settings, database), GRACE, True, report)
    except SQLAlchemyError as error:
        log.warning("unneeded datasets were not deleted: %s", str(error).partition("\n")[0])
    finally:
        database.close()
    for item in report.items:
        log.info("%s: %d deleted, %d bytes", item.what, item.count, item.bytes)
