"""Cached answers for clients that poll experiments.

Hundreds of clients poll the same few experiments. Every change of an experiment writes an event in the same
transaction, under the lock of its row (`app.experiments.lifecycle`). So an answer stays valid while the newest event is
still the one that was there before the answer was built, which is part of its version key.
"""

import threading
from collections.abc import Hashable
from hashlib import sha256
from typing import NamedTuple, Self

MAX_ANSWERS = 1000


class Answer(NamedTuple):
    """A JSON body and its ETag."""

    body: bytes
    tag: str

    @classmethod
    def of(cls, text: str) -> Self:
        body = text.encode()
        return cls(body, f'"{sha256(body).hexdigest()[:32]}"')


class PollCache:
    """The answers of one process, a few MiB at most. The least recently used are evicted first."""

    def __init__(self) -> None:
        self._answers: dict[str, tuple[Hashable, Answer]] = {}
        self._lock = threading.Lock()

    def get(self, experiment_id: str, version_key: Hashable) -> Answer | None:
        """The cached answer of an experiment if it was stored with this ``version_key``."""
        with self._lock:
            entry = self._answers.pop(experiment_id, None)
            if entry is None or entry[0] != version_key:
                return None
            self._answers[experiment_id] = entry  # now the most recently used
            return entry[1]

    def store(self, experiment_id: str, version_key: Hashable, answer: Answer) -> Answer:
        """Store an answer that was built after ``version_key`` was read; returns it."""
        with self._lock:
            self._answers[experiment_id] = version_key, answer
            while len(self._answers) > MAX_ANSWERS:
                del self._answers[next(iter(self._answers))]
        return answer
