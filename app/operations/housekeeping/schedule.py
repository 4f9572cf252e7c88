"""The relay's housekeeping, in a thread of its own, so that it delays no message."""

import logging
import threading
import time

from sqlalchemy.exc import SQLAlchemyError

from app.core.context import Context
from app.core.objects import ObjectStoreError
from app.operations.housekeeping.report import describe
from app.operations.housekeeping.service import run_housekeeping
from app.settings import Settings

log = logging.getLogger(__name__)
RETRY_SECONDS = 600.0


def run_periodically(settings: Settings, stop: threading.Event) -> None:
    """Apply the policy of the settings at its interval until ``stop`` is set. Does nothing without a policy."""
    policy = settings.retention
    if policy is None:
        return
    while not stop.is_set():
        began, pause = time.monotonic(), policy.every_hours * 3600
        try:
            context = Context.open(settings)
            try:
                for line in describe(run_housekeeping(context, policy, delete=True)):
                    log.info("housekeeping: %s", line)
            finally:
                context.close()
        except (SQLAlchemyError, ObjectStoreError, OSError) as error:
            pause = RETRY_SECONDS
            log.warning("housekeeping failed: %s", str(error).partition("\n")[0])
        stop.wait(max(0.0, pause - (time.monotonic() - began)))
