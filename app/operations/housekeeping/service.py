"""One run of housekeeping."""

import time
from datetime import timedelta
from itertools import chain

from app.core.context import Context
from app.operations.housekeeping import audit, local, orphans, retention, stages
from app.operations.housekeeping.report import Report, ReportBuilder, Run
from app.settings import RetentionPolicy


def run_housekeeping(context: Context, policy: RetentionPolicy | None, *, delete: bool) -> Report:
    """Delete what ``policy`` does not keep, and orphans; without a policy only orphans. A dry run unless ``delete``.

    Several runs may overlap. Raises ObjectStoreError if the store cannot be listed.
    """
    began = time.monotonic()
    run = Run(context, policy or RetentionPolicy(), delete, ReportBuilder())
    with context.database.whole.reading() as session:
        stored = retention.stored_bytes(session)
    needed = stages.NeededStages(context)
    freed = stages.delete_reproduction_stages(run)
    freed += retention.expire_by_age(run)
    freed += stages.delete_unused_stages(run, needed)
    if (limit := run.policy.max_bytes) is not None:
        freed += stages.delete_oldest_stages(run, needed, stored - freed - limit)
        freed += retention.expire_oldest(run, stored - freed - limit)
        if stored - freed > limit:
            run.report.remark(
                f"{stored - freed} bytes remain, more than {limit}: nothing else may be deleted"
            )
    audit.delete_old_entries(run)
    orphans.collect_orphans(run, needed)
    files = chain(
        local.find_fetched_datasets(context.settings, context.database),
        local.find_unfinished_objects(context.settings),
    )
    local.collect_files(files, timedelta(hours=run.policy.grace_hours), delete, run.report)
    return Report(
        deleted=delete,
        policy=policy,
        stored_bytes=stored,
        freed_bytes=run.report.freed,
        items=run.report.items,
        remarks=run.report.remarks,
        seconds=round(time.monotonic() - began, 3),
    )
