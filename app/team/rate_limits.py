"""Requests a minute of one owner, counted in this process, or for all API processes in the broker's server.

With the embedded broker there is one API process, which counts by itself. Where the counting server does not answer
each process counts for itself for a while: a limit that is a little too generous is better than an API that is away.
"""

import logging
import math
import time
from typing import Any

from fastapi.concurrency import run_in_threadpool

from app.core.security import Principal
from app.settings import Settings

log = logging.getLogger(__name__)
PATIENCE_SECONDS = 0.5
PAUSE_SECONDS = 30.0


class Rates:
    """Sliding windows of one minute."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.broker_url
        self._own: Any = None
        self._shared: Any = None
        self._away_until = 0.0

    async def take(self, principal: Principal) -> int | None:
        """Count a request. Returns None, or after how many seconds to try again if it is one too many."""
        most = principal.limits.requests
        if most is None:
            return None
        return await run_in_threadpool(self._take, principal.owner_id, most)

    def _take(self, owner_id: str, most: int) -> int | None:
        from limits import RateLimitItemPerMinute  # noqa: PLC0415  # only who sets a limit pays for the import
        from limits.errors import StorageError  # noqa: PLC0415

        self._open()
        window = RateLimitItemPerMinute(most, namespace="bdlab")
        limiter = self._own
        if self._shared is not None and time.monotonic() >= self._away_until:
            limiter = self._shared
        try:
            if limiter.hit(window, owner_id):
                return None
            reset = limiter.get_window_stats(window, owner_id).reset_time
        except StorageError as error:
            log.warning("requests are counted by each process, the broker is away: %s", error)
            self._away_until = time.monotonic() + PAUSE_SECONDS
            return self._take(owner_id, most)
        return max(1, math.ceil(float(reset) - time.time()))

    def _open(self) -> None:
        if self._own is not None:
            return
        from limits.storage import MemoryStorage, storage_from_string  # noqa: PLC0415
        from limits.strategies import SlidingWindowCounterRateLimiter  # noqa: PLC0415

        if self._url:
            url = self._url.replace("redis+socket://", "redis+unix://", 1)
            timeouts = {"socket_timeout": PATIENCE_SECONDS, "socket_connect_timeout": PATIENCE_SECONDS}
            storage = storage_from_string(url, wrap_exceptions=True, **timeouts)
            self._shared = SlidingWindowCounterRateLimiter(storage)
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
