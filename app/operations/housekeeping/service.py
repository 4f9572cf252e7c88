"""One round of housekeeping, tried or done."""

import time
from datetime import timedelta
from itertools import chain

from app.core.context import Context
from app.operations.housekeeping import local, orphans, retention, stages
from app.operations.housekeeping.report import Report, Tally
from app.settings import RetentionPolicy


def keep_house(context: Context, policy: RetentionPolicy | None, *, delete: bool) -> Report:
    """Let go what ``policy`` lets go, and what belongs to nothing. Unless ``delete``, only say what that would be.

    Without a policy it is what belongs to nothing alone. Two rounds at once do no harm. Raises ObjectStoreError if the
    store cannot be listed.
    """
    began, tally = time.monotonic(), Tally()
    rules = policy or RetentionPolicy()
    with context.database.whole.reading() as session:
        stored = retention.stored_bytes(session)
    used = stages.InUse(context)
    grace = timedelta(hours=rules.grace_hours)
    freed = stages.private(context, grace, delete, tally)
    freed += retention.by_age(context, rules, delete, tally)
    freed += stages.by_age(context, rules, used, delete, tally)
    if rules.max_bytes is not None:
        if (excess := stored - freed - rules.max_bytes) > 0:
            freed += stages.by_size(context, rules, used, excess, delete, tally)
        if (excess := stored - freed - rules.max_bytes) > 0:
            freed += retention.by_size(context, rules, excess, delete, tally)
        if stored - freed > rules.max_bytes:
            tally.remark(f"{stored - freed} bytes stay, more than {rules.max_bytes}: nothing else may go")
    orphans.sweep(context, policy, used, delete, tally)
    files = chain(local.fetched(context.settings, context.database), local.staged(context.settings))
    local.sweep(files, grace.total_seconds(), delete, tally)
    return Report(
        deleted=delete,
        policy=policy,
        stored_bytes=stored,
        freed_bytes=tally.freed,
        items=tally.items,
        remarks=tally.remarks,
        seconds=round(time.monotonic() - began, 3),
    )
