"""Carries the counters of relay and workers through SQL to the API's /metrics, which shows the sums.

Prometheus cannot scrape worker processes, which are short-lived. SQL is used because prometheus_client's multiprocess
mode shares files of one host only, and OpenTelemetry metrics need a collector, which a default installation lacks.
"""

import json
import os
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

from prometheus_client import Metric
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.core.database import Database, upsert
from app.core.metrics import REGISTRY
from app.tables.counters import SharedCounter

SHARDS = 8
PUSH_SECONDS = 10.0
PROCESS = "process"
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}


class Sample(NamedTuple):
    """One time series. Series of a ``group`` are written together, so that no bucket of a histogram is missing."""

    group: tuple[str, str]
    name: str
    labels: str


class Pusher:
    """Adds the counters of this process to the table. A forked process creates its own."""

    def __init__(self, process: str) -> None:
        self._process = process
        self._pushed = self._counted()
        self._due = time.monotonic() + PUSH_SECONDS
        self._lock = threading.Lock()

    def push_if_due(self, database: Database) -> None:
        """`push`, at most every `PUSH_SECONDS`."""
        if time.monotonic() >= self._due:
            self.push(database)

    def push(self, database: Database) -> None:
        """Add what was counted since the last push; if the database is unreachable, the next push adds it."""
        with self._lock:
            self._due = time.monotonic() + PUSH_SECONDS
            counted = self._counted()
            changed = {s.group for s, value in counted.items() if value != self._pushed.get(s, 0.0)}
            rows = [
                {
                    "sample": s.name,
                    "labels": s.labels,
                    "shard": os.getpid() % SHARDS,
                    "value": value - self._pushed.get(s, 0.0),
                }
                for s, value in sorted(
                    counted.items()
                )  # sorted, so that processes lock rows in the same order
                if s.group in changed
            ]
            if not rows:
                return
            try:
                with database.writing() as session:
                    keys = ["sample", "labels", "shard"]
                    upsert(
                        session,
                        SharedCounter,
                        rows,
                        keys,
                        lambda new: {"value": SharedCounter.value + new.value},
                    )
            except SQLAlchemyError:
                return
            self._pushed = counted

    def _counted(self) -> dict[Sample, float]:
        counted = {}
        for family in REGISTRY.collect():
            for sample in family.samples:
                labels = dict(sample.labels) | {PROCESS: self._process}
                group = {key: value for key, value in labels.items() if key != "le"}
                counted[Sample((family.name, _to_json(group)), sample.name, _to_json(labels))] = sample.value
        return counted


def collect_families(session: Session, process: str) -> Iterator[Metric]:
    """The counters of this process, labeled ``process``, and those of all others."""
    stored: dict[str, list[tuple[dict[str, str], float]]] = {}
    query = select(SharedCounter.sample, SharedCounter.labels, func.sum(SharedCounter.value)).group_by(
        SharedCounter.sample, SharedCounter.labels
    )
    for name, text, value in session.execute(query):
        stored.setdefault(name, []).append((json.loads(text), value))
    for family in REGISTRY.collect():
        merged = Metric(family.name, family.documentation, family.type)
        for sample in family.samples:
            merged.add_sample(sample.name, {**sample.labels, PROCESS: process}, sample.value)
        for suffix in SUFFIXES[family.type]:
            for labels, total in stored.get(family.name + suffix, ()):
                merged.add_sample(family.name + suffix, labels, total)
        yield merged


def _to_json(labels: dict[str, str]) -> str:
    return json.dumps(labels, sort_keys=True)
