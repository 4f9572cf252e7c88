"""The relay's housekeeping, in a thread of its own, so that no message waits for it."""

import logging
import threading
import time

from sqlalchemy.exc import SQLAlchemyError

from app.core.context import Context
from app.core.objects import ObjectStoreError
from app.operations.housekeeping.report import in_words
from app.operations.housekeeping.service import keep_house
from app.settings import Settings

log = logging.getLogger(__name__)
AGAIN_SECONDS = 600.0


def keep(settings: Settings, stop: threading.Event) -> None:
    """Act on the policy of the settings, again and again, until ``stop`` is set. Without a policy nothing is done."""
    policy = settings.retention
    if policy is None:
        return
    while not stop.is_set():
        began, pause = time.monotonic(), policy.every_hours * 3600
        try:
            context = Context.open(settings)
            try:
                for line in in_words(keep_house(context, policy, delete=True)):
                    log.info("housekeeping: %s", line)
            finally:
                context.close()
        except (SQLAlchemyError, ObjectStoreError, OSError) as error:
            pause = AGAIN_SECONDS
            log.warning("housekeeping broke off: %s", str(error).partition("\n")[0])
        stop.wait(max(0.0, pause - (time.monotonic() - began)))
