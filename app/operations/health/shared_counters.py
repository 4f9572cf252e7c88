"""The counts of relay and workers on their way through SQL to the API's /metrics.

A worker's processes come and go, several on one host, and nobody can reach them all: each adds what it has counted to
the table, and the API tells the sums.
"""

import json
import os
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

from prometheus_client import Metric
from sqlalchemy import func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.core.database import Database
from app.core.metrics import REGISTRY
from app.tables.counters import Tally

SHARDS = 8
PUSH_SECONDS = 10.0
PROCESS = "process"
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}


class Sample(NamedTuple):
    """One time series; ``group`` is what it is written with, so that no bucket of a histogram is ever missing."""

    group: tuple[str, str]
    name: str
    labels: str


class Pusher:
    """Adds what this process counts to the table. A forked process makes its own."""

    def __init__(self, process: str) -> None:
        self._process = process
        self._pushed = self._counted()
        self._due = time.monotonic() + PUSH_SECONDS
        self._lock = threading.Lock()

    def push_if_due(self, database: Database) -> None:
        """`push`, but not more often than every so many seconds."""
        if time.monotonic() >= self._due:
            self.push(database)

    def push(self, database: Database) -> None:
        """Add what was counted since the last time. If the database is away it is added the next time."""
        with self._lock:
            self._due = time.monotonic() + PUSH_SECONDS
            counted = self._counted()
            changed = {s.group for s, value in counted.items() if value != self._pushed.get(s, 0.0)}
            rows = [
                {"sample": s.name, "labels": s.labels, "value": value - self._pushed.get(s, 0.0)}
                for s, value in sorted(counted.items())
                if s.group in changed
            ]
            if not rows:
                return
            try:
                with database.writing() as session:
                    _add(session, [row | {"shard": os.getpid() % SHARDS} for row in rows])
            except SQLAlchemyError:
                return
            self._pushed = counted

    def _counted(self) -> dict[Sample, float]:
        found = {}
        for family in REGISTRY.collect():
            for sample in family.samples:
                labels = dict(sample.labels) | {PROCESS: self._process}
                group = {key: value for key, value in labels.items() if key != "le"}
                found[Sample((family.name, _text(group)), sample.name, _text(labels))] = sample.value
        return found


def _add(session: Session, rows: list[dict[str, object]]) -> None:
    """In one statement and one order, so that two processes never wait for each other crosswise."""
    lite = session.get_bind().dialect.name == "sqlite"
    statement = sqlite.insert(Tally) if lite else postgresql.insert(Tally)
    session.execute(
        statement.values(rows).on_conflict_do_update(
            index_elements=["sample", "labels", "shard"],
            set_={"value": Tally.value + statement.excluded.value},
        )
    )


def families(session: Session, process: str) -> Iterator[Metric]:
    """What this process counted, under the name ``process``, and all others, under theirs."""
    stored: dict[str, list[tuple[dict[str, str], float]]] = {}
    query = select(Tally.sample, Tally.labels, func.sum(Tally.value)).group_by(Tally.sample, Tally.labels)
    for name, labels, value in session.execute(query):
        stored.setdefault(name, []).append((json.loads(labels), value))
    for family in REGISTRY.collect():
        merged = Metric(family.name, family.documentation, family.type)
        for sample in family.samples:
            merged.add_sample(sample.name, {**sample.labels, PROCESS: process}, sample.value)
        for suffix in SUFFIXES[family.type]:
            for known, total in stored.get(family.name + suffix, ()):
                merged.add_sample(family.name + suffix, known, total)
        yield merged


def _text(labels: dict[str, str]) -> str:
    return json.dumps(labels, sort_keys=True)
