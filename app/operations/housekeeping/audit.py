"""Deletes old entries of the audit log."""

from datetime import timedelta

from app.core.database import utcnow
from app.operations.housekeeping.report import Run
from app.team.audit import repository

BATCH = 5000
"""Entries that one transaction deletes, so that requests need not wait long to write theirs."""


def delete_old_entries(run: Run) -> None:
    """Entries older than ``audit_days``."""
    if (days := run.policy.audit_days) is None:
        return
    before = utcnow() - timedelta(days=days)
    database, deleted = run.context.database.whole, 0
    if run.delete:
        while True:
            with database.writing() as session:
                deleted += (number := repository.delete_older(session, before, BATCH))
            if number < BATCH:
                break
    else:
        with database.reading() as session:
            deleted = repository.count_older(session, before)
    if deleted:
        what = f"entries older than {days:g} days"
        run.report.add("audit", what, f"before {before.isoformat(timespec='seconds')}", 0, deleted)
