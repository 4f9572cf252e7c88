"""The service beside an MLflow tracking server in one run: create, log, get, history, poll and search, by one client.

Both are servers of one process on SQLite, with the same number of runs and of points. Every request is sent to one and
then to the other, so that other load on the machine affects both alike. Prints a Markdown table: medians of what the
client waits, their ratio, the servers' processor time per request, and the size of the responses. A second table is the
least that the service's packages cost, asked in the same turns (`_floor`). MLflow (the whole package, not
mlflow-skinny) is best installed in an environment of its own; --mlflow names its command.

    python benchmarks/mlflow_comparison.py --mlflow PATH [--runs 120] [--points 300] [--repeat 100]
"""

import argparse
import json
import os
import platform
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlencode

from _serving import Connection, free_port

from app.core.database import Database
from app.core.objects import Objects
from app.experiments import lifecycle
from app.operations import schema
from app.settings import Settings
from app.specs.flatten import flatten
from worker.lab.contracts import Scope
from worker.lease import Lease
from worker.recorder import SqlRecorder

START_SECONDS = 600.0
BATCH, PAGE = 100, 50
LEASE_SECONDS = 86_400
A = "/api/2.0/mlflow"
CREATE, LOG = "create", f"log {BATCH} points"
Ask = Callable[[], bytes]


class Side:
    """One of the two servers: the seconds of every request to it, and the processor seconds of all, by question."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        self.pids, self.http = [process.pid, *map(int, children)], Connection(port)
        self.seconds: dict[str, list[float]] = {}
        self.processor: dict[str, float] = {}
        self.sizes: dict[str, int] = {}

    def measure(self, question: str, ask: Ask, processor: Callable[[], float] | None = None) -> bytes:
        """Send one request and record it; ``processor``: the clock of who does the work, by default the server's."""
        clock = processor or (lambda: sum(map(processor_seconds, self.pids)))
        spent, began = clock(), time.perf_counter()
        answer = ask()
        self.seconds.setdefault(question, []).append(time.perf_counter() - began)
        self.processor[question] = self.processor.get(question, 0.0) + clock() - spent
        self.sizes[question] = len(answer)
        return answer


def processor_seconds(pid: int) -> float:
    """Of all threads of a process; the clock's number is that of clock_getcpuclockid(3)."""
    return time.clock_gettime(~pid << 3 | 2)


class Ours(Side):
    """The service, as `bdlab up` runs its API; this process plays the worker."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, settings: Settings) -> None:
        super().__init__(process, port)
        self.settings = settings.model_copy(update={"lease_seconds": float(LEASE_SECONDS)})
        self.database, self.objects = Database(settings.database), Objects(settings.objects)
        self.ids: list[str] = []

    def run(self, spec: dict[str, Any], points: int, accuracy: float) -> None:
        """Submit an experiment; claim, record and finish it as a worker does."""
        answer = self.measure(CREATE, lambda: self.http.ask("POST", "/v1/experiments", spec))
        self.ids.append(json.loads(answer)["id"])
        with self.database.writing() as session:
            attempt = lifecycle.claim(session, self.ids[-1], "benchmark", LEASE_SECONDS)
        assert attempt is not None
        recorder = SqlRecorder(Lease(self.database, self.settings, self.ids[-1], attempt), self.objects)
        scope = Scope(arm="undefended", seed=0)

        def log(first: int) -> bytes:
            for step in range(first, first + BATCH):
                recorder.metric(scope, "train_loss", step, step / 3)
            recorder.flush()
            return b""

        for first in range(0, points, BATCH):
            self.measure(LOG, lambda first=first: log(first), time.process_time)
        recorder.result(scope, {"clean_accuracy": accuracy, "attack_success_rate": 1.0})
        recorder.flush()
        with self.database.writing() as session:
            assert lifecycle.finish(session, self.ids[-1], attempt, "succeeded")

    def questions(self) -> dict[str, Callable[[int], Ask]]:
        def get(path: str, **headers: str) -> Ask:
            return lambda: self.http.ask("GET", path, **headers)

        polled = f"/v1/experiments/{self.ids[0]}"
        tag = f'"{sha256(self.http.ask("GET", polled)).hexdigest()[:32]}"'
        where = ["attack.name=badnets", "results.clean_accuracy>=0.5"]
        search = {"where": where, "sort": "-results.clean_accuracy", "limit": PAGE}
        newest = {"tag": "study:example", "limit": PAGE}
        return {
            "get": lambda n: get(f"/v1/experiments/{self.ids[-1 - n % len(self.ids)]}"),
            "history of a metric": lambda n: get(
                f"/v1/experiments/{self.ids[n % len(self.ids)]}/metrics?arm=undefended&seed=0&name=train_loss"
            ),
            "poll, unchanged": lambda _: get(polled, **{"If-None-Match": tag}),
            f"search: {PAGE} best by metric and attack": lambda _: get(
                f"/v1/results?{urlencode(search, doseq=True)}"
            ),
            f"list: newest {PAGE} of a tag": lambda _: get(f"/v1/experiments?{urlencode(newest)}"),
        }


class Theirs(Side):
    """An MLflow tracking server."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        super().__init__(process, port)
        made = self.post("experiments/create", {"name": "comparison"})()
        self.experiment, self.ids = json.loads(made)["experiment_id"], list[str]()

    def post(self, route: str, body: dict[str, Any]) -> Ask:
        return lambda: self.http.ask("POST", f"{A}/{route}", body)

    def run(self, spec: dict[str, Any], points: int, accuracy: float) -> None:
        """Create a run with the spec as parameters, log the points, and end it."""
        now = time.time_ns() // 1_000_000
        tags = [{"key": key, "value": value} for key, value in spec["tags"].items()]
        run = {"experiment_id": self.experiment, "start_time": now, "run_name": spec["name"], "tags": tags}
        made = json.loads(self.measure(CREATE, self.post("runs/create", run)))
        self.ids.append(made["run"]["info"]["run_id"])
        params = [{"key": key, "value": str(value)} for key, value in flatten(spec).items()]
        self.post("runs/log-batch", {"run_id": self.ids[-1], "params": params})()

        def metric(key: str, value: float, step: int) -> dict[str, Any]:
            return {"key": key, "value": value, "timestamp": now, "step": step}

        for first in range(0, points, BATCH):
            metrics = [metric("train_loss", step / 3, step) for step in range(first, first + BATCH)]
            self.measure(LOG, self.post("runs/log-batch", {"run_id": self.ids[-1], "metrics": metrics}))
        final = [metric("clean_accuracy", accuracy, 0), metric("attack_success_rate", 1.0, 0)]
        self.post("runs/log-batch", {"run_id": self.ids[-1], "metrics": final})()
        self.post("runs/update", {"run_id": self.ids[-1], "status": "FINISHED", "end_time": now})()

    def questions(self) -> dict[str, Callable[[int], Ask]]:
        def get(n: int) -> Ask:
            return lambda: self.http.ask("GET", f"{A}/runs/get?run_id={self.ids[n % len(self.ids)]}")

        def history(n: int) -> Ask:
            query = f"run_id={self.ids[n % len(self.ids)]}&metric_key=train_loss"
            return lambda: self.http.ask("GET", f"{A}/metrics/get-history?{query}")

        def search(condition: str, order: str) -> Ask:
            body = {"experiment_ids": [self.experiment], "max_results": PAGE}
            return self.post("runs/search", {**body, "filter": condition, "order_by": [order]})

        best = "params.`attack.name` = 'badnets' and metrics.clean_accuracy >= 0.5"
        return {
            "get": lambda n: get(-1 - n),
            "history of a metric": history,
            "poll, unchanged": lambda _: get(0),
            f"search: {PAGE} best by metric and attack": lambda _: search(
                best, "metrics.clean_accuracy DESC"
            ),
            f"list: newest {PAGE} of a tag": lambda _: search(
                "tags.study = 'example'", "attributes.start_time DESC"
            ),
        }


class Floor(Side):
    """FastAPI and uvicorn with the fewest statements, on the service's database."""

    def questions(self, ids: list[str]) -> dict[str, Callable[[int], Ask]]:
        def get(path: str, **headers: str) -> Ask:
            return lambda: self.http.ask("GET", path, **headers)

        return {
            "get": lambda n: get(f"/experiments/{ids[-1 - n % len(ids)]}"),
            "history of a metric": lambda n: get(f"/experiments/{ids[n % len(ids)]}/metrics?name=train_loss"),
            "poll, unchanged": lambda _: get("/unchanged", **{"If-None-Match": '"tag"'}),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mlflow", default="mlflow", help="Path of the mlflow command")
    parser.add_argument("--runs", type=int, default=120)
    parser.add_argument("--points", type=int, default=300, help="Per run")
    parser.add_argument("--repeat", type=int, default=100, help="Requests per question and server")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bdlab-mlflow-")))
        ours = stack.enter_context(serve_ours(folder))
        theirs = stack.enter_context(serve_theirs(folder, options.mlflow))
        floor = stack.enter_context(serve_floor(folder, ours.settings.database))
        describe(options)
        random.seed(0)
        for number in range(options.runs):
            spec, accuracy = make_spec(number), random.uniform(0.5, 1.0)
            ours.run(spec, options.points, accuracy)
            theirs.run(spec, options.points, accuracy)
        questions: dict[Side, dict[str, Callable[[int], Ask]]] = {
            ours: ours.questions(),
            theirs: theirs.questions(),
            floor: floor.questions(ours.ids),
        }
        for question in questions[ours]:
            for number in range(options.repeat):
                for side, asked in questions.items():
                    if question in asked:
                        side.measure(question, asked[question](number))
        report("bdlab", ours, theirs)
        report("least", floor, theirs)
        print(f"load average at the end: {os.getloadavg()[0]:.1f}")


def make_spec(number: int) -> dict[str, Any]:
    """An experiment that differs from the others in its rate; two thirds of them have the attack that is searched."""
    attack = {"name": "sig" if number % 3 == 0 else "badnets", "poisoning_rate": 0.01 + number / 10_000}
    tags = {"study": "example", "part": "a"}
    return {"name": f"run {number}", "dataset": {"name": "digits"}, "attack": attack, "tags": tags}


@contextmanager
def running(command: list[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, **options)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def wait(process: subprocess.Popen[bytes], port: int, path: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            Connection(port).ask("GET", path)
        except (OSError, AssertionError):
            gone = process.poll() is not None or time.monotonic() > deadline
            assert not gone, f"no server\n{log.read_text(errors='replace')[-2000:]}"
            time.sleep(0.2)
        else:
            return


@contextmanager
def serve_ours(folder: Path) -> Iterator[Ours]:
    settings = Settings(home=folder / "home")
    schema.upgrade(settings.database)
    log = folder / "bdlab.log"
    with socket.create_server(("127.0.0.1", 0)) as door:
        command = [sys.executable, "-m", "app.operations.server", "--fd", str(door.fileno())]
        environment = {**os.environ, "BDLAB_HOME": str(settings.home)}
        with running(command, log, pass_fds=[door.fileno()], env=environment) as process:
            port = door.getsockname()[1]
            wait(process, port, "/healthz", log)
            yield Ours(process, port, settings)


@contextmanager
def serve_theirs(folder: Path, mlflow: str) -> Iterator[Theirs]:
    port, log = free_port(), folder / "mlflow.log"
    options = {
        "--backend-store-uri": f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination": str(folder / "mlflow"),
        "--port": str(port),
        "--workers": "1",
    }
    command = [mlflow, "server", *(word for pair in options.items() for word in pair)]
    # Without its runner of background jobs, a process of its own that this comparison does not use.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with running(command, log, env=environment) as process:
        wait(process, port, "/health", log)
        yield Theirs(process, port)


@contextmanager
def serve_floor(folder: Path, database: str) -> Iterator[Floor]:
    port, log = free_port(), folder / "floor.log"
    environment = {**os.environ, "FLOOR_DATABASE": database, "FLOOR_PORT": str(port)}
    with running(
        [sys.executable, str(Path(__file__).with_name("_floor.py"))], log, env=environment
    ) as process:
        wait(process, port, "/unchanged", log)
        yield Floor(process, port)


def describe(options: argparse.Namespace) -> None:
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    print(
        f"{now}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
    )
    print(", ".join(f"{name} {version(name)}" for name in ("fastapi", "uvicorn", "SQLAlchemy", "pydantic")))
    print(
        subprocess.run(
            [options.mlflow, "--version"], capture_output=True, text=True, check=True
        ).stdout.strip()
    )
    print(f"{options.runs} runs of {options.points} points; {options.repeat} requests per question\n")


def report(name: str, ours: Side, theirs: Side) -> None:
    print(
        f"| request | {name} ms | MLflow ms | ratio | {name} processor ms | MLflow | ratio | {name} kB | MLflow |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for question, seconds in ours.seconds.items():
        waited = [1000 * median(part) for part in (seconds, theirs.seconds[question])]
        spent = [1000 * s.processor[question] / len(s.seconds[question]) for s in (ours, theirs)]
        sizes = [side.sizes[question] / 1000 for side in (ours, theirs)]
        cells = [f"{a:.2f} | {b:.2f} | {b / a:.1f}" for a, b in (waited, spent)]
        print(f"| {question} | {' | '.join(cells)} | {sizes[0]:.1f} | {sizes[1]:.1f} |")
    print()


if __name__ == "__main__":
    main()
