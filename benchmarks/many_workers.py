"""Database load per worker, measured on SQLite and on PostgreSQL.

Simulated workers (threads that run the worker's own code without training) perform as fast as possible the operations
that a real worker performs at intervals: heartbeats, polls for cancellation, an epoch's metrics, registrations, and
claims with short and long queues. Prints operations per second, the 99th percentile, and the processor time of each
operation on the worker's and the server's side. Processor times do not depend on other load of the machine; the number
of workers that a server supports follows from them.
"""

import argparse
import contextlib
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import insert

from app.core.database import Database, new_id, utcnow
from app.core.objects import Objects
from app.experiments import lifecycle, scheduling
from app.operations import schema
from app.settings import Settings
from app.specs.experiment import ExperimentSpec
from app.specs.placement import CPU
from app.tables.experiments import Experiment
from tests.processes import descendants
from tests.servers import Postgres
from worker.celery import REGISTRATION_SECONDS
from worker.lab.contracts import Scope
from worker.lease import TICK_SECONDS, Lease
from worker.recorder import SqlRecorder
from worker.registry import Registration

QUEUES = (1_000, 100_000)
EPOCH_SECONDS = 5.0
"""Interval at which training records metrics; about an epoch of ResNet-18 on CIFAR-10 on a large GPU."""


class Simulation:
    """Simulated workers, each with its own experiment, on one database."""

    def __init__(self, settings: Settings, workers: int) -> None:
        self.settings, self.workers = settings, workers
        self.server: int | None = None
        schema.upgrade(settings.database)
        self.database = Database(settings.database)
        self.steps = itertools.count()
        ids = self.queue(workers)
        self.leases = []
        for number, experiment_id in enumerate(ids):
            with self.database.writing() as session:
                attempt = lifecycle.claim(session, experiment_id, f"simulated:{number}:cpu", 3600)
            assert attempt is not None
            self.leases.append(Lease(self.database, settings, experiment_id, attempt))
        objects = Objects(settings.objects)
        self.recorders = [SqlRecorder(lease, objects) for lease in self.leases]
        self.signs = [
            Registration(settings.database, f"simulated:{number}:cpu", [CPU], lambda: True)
            for number in range(workers)
        ]

    def queue(self, number: int) -> list[str]:
        """Insert queued experiments without outbox messages; return their ids."""
        spec, now = ExperimentSpec(), utcnow()
        row = {
            "name": "",
            "status": "queued",
            "spec": spec.model_dump(mode="json"),
            "spec_hash": spec.spec_hash,
            "dataset": "digits",
            "model": "small_cnn",
            "attack": "badnets",
            "created_at": now,
            "queued_at": now,
            "due_at": now,
            "attempts_left": 3,
            "progress": {},
        }
        rows = [row | {"id": new_id()} for _ in range(number)]
        with self.database.writing() as session:
            for start in range(0, number, 5000):
                session.execute(insert(Experiment), rows[start : start + 5000])
        return [str(one["id"]) for one in rows]

    def beat(self, number: int) -> None:
        self.leases[number]._renew()

    def look(self, number: int) -> None:
        self.leases[number]._poll()

    def tell(self, number: int) -> None:
        """Record an epoch: six metrics, progress, a log line."""
        step, recorder = next(self.steps), self.recorders[number]
        scope = Scope("undefended", 0, "victim")
        for name in (
            "loss",
            "accuracy",
            "clean_accuracy",
            "attack_success_rate",
            "clean_loss",
            "poisoned_loss",
        ):
            recorder.metric(scope, name, step, 0.5)
        recorder.progress(scope, step, step + 1, 0.5)
        recorder.log("an epoch is done")
        recorder.flush()

    def sign(self, number: int) -> None:
        self.signs[number].renew()

    def take(self, number: int) -> None:
        with self.database.writing() as session:
            assert (
                scheduling.claim_next(session, "none", f"other:{number}:cpu", [CPU], self.settings)
                is not None
            )


class Measured(NamedTuple):
    """Operations per second of all workers together; in milliseconds the 99th percentile and the processor times."""

    each: float
    slow: float
    mine: float
    servers: float

    def __str__(self) -> str:
        return (
            f"{self.each:6.0f}/s  p99 {self.slow:7.1f} ms  "
            f"processors: worker {self.mine:5.2f} ms, server {self.servers:5.2f} ms"
        )


def server_seconds(process: int | None) -> float:
    """Processor time of a server and all its children, including those that have ended."""
    if process is None:
        return 0.0
    total = 0
    for pid in (process, *descendants(process)):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15] if pid == process else fields[11:13]))
    return total / os.sysconf("SC_CLK_TCK")


def measure(simulation: Simulation, work: Callable[[int], None], seconds: float) -> Measured:
    """Let every simulated worker repeat ``work`` for ``seconds``."""
    times: list[float] = []
    mine, servers = time.process_time(), server_seconds(simulation.server)
    end = time.monotonic() + seconds

    def run(number: int) -> None:
        while (began := time.monotonic()) < end:
            work(number)
            times.append(time.monotonic() - began)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(simulation.workers)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took, count = time.monotonic() - began, len(times)
    mine, servers = time.process_time() - mine, server_seconds(simulation.server) - servers
    slow = sorted(times)[int(0.99 * (count - 1))]
    return Measured(count / took, 1000 * slow, 1000 * mine / count, 1000 * servers / count)


def report(name: str, settings: Settings, workers: int, seconds: float, server: int | None = None) -> None:
    simulation = Simulation(settings, workers)
    simulation.server = server
    print(f"{name}, {workers} simulated workers")
    pace = settings.heartbeat_seconds
    # A heartbeat also checks for cancellation, so there are fewer polls than ticks.
    operations = (
        ("heartbeat", simulation.beat, 1 / pace),
        ("cancellation poll", simulation.look, 1 / TICK_SECONDS - 1 / pace),
        ("epoch metrics", simulation.tell, 1 / EPOCH_SECONDS),
        ("registration", simulation.sign, 1 / REGISTRATION_SECONDS),
    )
    share = processors = 0.0
    for what, work, rate in operations:
        found = measure(simulation, work, seconds)
        share += rate / found.each
        processors += rate * found.servers
        print(f"  {what:20} {rate:4.1f}/s per worker, measured {found}")
    print(f"  a worker takes {100 * share:.2f} % of this machine, {processors:.2f} ms/s of the server")
    waiting = 0
    for length in QUEUES:
        simulation.queue(length - waiting)
        found = measure(simulation, simulation.take, seconds)
        waiting = length - int(found.each * seconds)
        print(f"  claim, {length:6} queued          measured {found}")
    simulation.database.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4.0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report("SQLite", Settings(home=Path(folder) / "sqlite"), chosen.workers, chosen.seconds)
        with Postgres() as postgres:
            settings = Settings(home=Path(folder) / "postgres", database_url=postgres.fresh())
            pid = int((postgres._data / "postmaster.pid").read_text().split()[0])
            report("PostgreSQL", settings, chosen.workers, chosen.seconds, pid)


if __name__ == "__main__":
    main()
