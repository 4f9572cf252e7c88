"""Turns of owners for requests that are expensive, so that many of one owner do not delay those of another.

An owner has at most ``per_owner`` requests of a kind in flight; another one gets 429. At most ``width`` run at once, of
one owner all but one of them, so that another owner need not wait until one ends. When one ends, the next is of the
waiting owner who has the fewest running and, among those, was served longest ago.

Each API process counts for itself. Everything here runs in its event loop, so it needs no lock.
"""

import asyncio
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from app.core.errors import TooManyError, UnavailableError

RETRY_SECONDS = 1
PATIENCE_SECONDS = 30.0
"""How long a request waits for its turn."""


class Kind(NamedTuple):
    """Requests that take turns. ``name`` is their plural in messages; without a ``width`` all may run at once."""

    name: str
    per_owner: int
    width: int = sys.maxsize


class Turns:
    """The requests that are in flight in one process."""

    def __init__(self) -> None:
        self._queues: dict[Kind, _Queue] = {}

    @asynccontextmanager
    async def take(
        self, kind: Kind, owner_id: str, patience: float = PATIENCE_SECONDS
    ) -> AsyncIterator[None]:
        """Wait for a turn, and have it until the end of the block.

        Raises TooManyError if the owner has too many in flight, UnavailableError if its turn does not come in
        ``patience`` seconds.
        """
        queue = self._queues.setdefault(kind, _Queue(kind.width))
        if queue.in_flight[owner_id] >= kind.per_owner:
            raise TooManyError(
                f"the limit is {kind.per_owner} {kind.name} in flight; wait for one of them to end",
                retry_after=RETRY_SECONDS,
            )
        queue.in_flight[owner_id] += 1
        try:
            try:
                async with asyncio.timeout(patience):
                    await queue.enter(owner_id)
            except TimeoutError as error:
                raise UnavailableError(f"too many {kind.name}: no turn within {patience:g} s") from error
            try:
                yield
            finally:
                queue.leave(owner_id)
        finally:
            queue.in_flight[owner_id] -= 1
            if not queue.in_flight[owner_id]:
                del queue.in_flight[owner_id]


class _Queue:
    def __init__(self, width: int) -> None:
        self.width = width
        self.in_flight: Counter[str] = Counter()
        self.running: Counter[str] = Counter()
        self.waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """By owner; the one who was served longest ago comes first."""

    async def enter(self, owner_id: str) -> None:
        if self.running.total() < self.width and self._may_run(owner_id):
            self.running[owner_id] += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.setdefault(owner_id, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it came at the same moment
                self.leave(owner_id)
            raise

    def leave(self, owner_id: str) -> None:
        """End a turn, and give it to the next."""
        self.running[owner_id] -= 1
        if not self.running[owner_id]:
            del self.running[owner_id]
        while waiting := [owner for owner in self.waiting if self._may_run(owner)]:
            following = min(waiting, key=lambda owner: self.running[owner])
            turns = self.waiting.pop(following)
            turn = turns.popleft()
            if turns:
                self.waiting[following] = turns
            if not turn.done():  # a request that was given up stays here, canceled
                self.running[following] += 1
                turn.set_result(None)
                return

    def _may_run(self, owner_id: str) -> bool:
        return self.running[owner_id] < max(1, self.width - 1)
