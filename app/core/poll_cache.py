"""What pollers are answered, kept until something happens to the experiment.

Hundreds of pollers ask again and again how the same few experiments stand. Whatever changes an experiment writes an
event in the same transaction, under the lock of its row (`app.experiments.lifecycle`), so an answer is good as long
as the newest event is the one that was there before the answer was made.
"""

import threading
from collections.abc import Hashable
from hashlib import sha256
from typing import NamedTuple, Self

MOST_KEPT = 1000


class Answer(NamedTuple):
    """A body of JSON, and its ETag."""

    body: bytes
    tag: str

    @classmethod
    def of(cls, text: str) -> Self:
        body = text.encode()
        return cls(body, f'"{sha256(body).hexdigest()[:32]}"')


class Polled:
    """The answers of one process: a few MiB at most, those asked for least recently go first."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Hashable, Answer]] = {}
        self._lock = threading.Lock()

    def get(self, experiment_id: str, stamp: Hashable) -> Answer | None:
        """The answer of an experiment, if it was kept under this ``stamp``."""
        with self._lock:
            kept = self._kept.pop(experiment_id, None)
            if kept is None or kept[0] != stamp:
                return None
            self._kept[experiment_id] = kept
            return kept[1]

    def keep(self, experiment_id: str, stamp: Hashable, answer: Answer) -> Answer:
        """Keep an answer that was made after the ``stamp`` was read; returns it."""
        with self._lock:
            self._kept[experiment_id] = stamp, answer
            while len(self._kept) > MOST_KEPT:
                del self._kept[next(iter(self._kept))]
        return answer
