"""The limit of an owner's requests in a minute.

Requests are counted in the broker's server, for all API processes together. With the embedded broker there is only one
API process, which counts in memory. While the broker is unavailable each process counts for itself: a limit that is too
generous for a while is better than an API that is down.
"""

import logging
import math
import time
from typing import Any

from fastapi.concurrency import run_in_threadpool

from app.settings import Settings

log = logging.getLogger(__name__)
TIMEOUT_SECONDS = 0.5
PAUSE_SECONDS = 30.0
"""For how long the broker is not tried again after it was unavailable."""


class RateLimiter:
    """Counts requests in sliding windows of one minute."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.broker_url
        self._local: Any = None
        self._shared: Any = None
        self._unavailable_until = 0.0

    async def count_request(self, owner_id: str, limit: int) -> int | None:
        """Count a request. Returns None, or if it exceeds the limit the seconds after which to retry."""
        return await run_in_threadpool(self._count, owner_id, limit)

    def _count(self, owner_id: str, limit: int) -> int | None:
        from limits import RateLimitItemPerMinute  # noqa: PLC0415  # slow to import, and needed only with a limit
        from limits.errors import StorageError  # noqa: PLC0415

        self._open()
        window = RateLimitItemPerMinute(limit, namespace="bdlab")
        shared = self._shared is not None and time.monotonic() >= self._unavailable_until
        limiter = self._shared if shared else self._local
        try:
            if limiter.hit(window, owner_id):
                return None
            reset = limiter.get_window_stats(window, owner_id).reset_time
        except StorageError as error:
            log.warning("the broker is unavailable; each API process counts requests for itself: %s", error)
            self._unavailable_until = time.monotonic() + PAUSE_SECONDS
            return self._count(owner_id, limit)
        return max(1, math.ceil(float(reset) - time.time()))

    def _open(self) -> None:
        if self._local is not None:
            return
        from limits.storage import MemoryStorage, storage_from_string  # noqa: PLC0415
        from limits.strategies import SlidingWindowCounterRateLimiter  # noqa: PLC0415

        if self._url:
            url = self._url.replace("redis+socket://", "redis+unix://", 1)
            timeouts = {"socket_timeout": TIMEOUT_SECONDS, "socket_connect_timeout": TIMEOUT_SECONDS}
            storage = storage_from_string(url, wrap_exceptions=True, **timeouts)
            self._shared = SlidingWindowCounterRateLimiter(storage)
        self._local = SlidingWindowCounterRateLimiter(MemoryStorage())
