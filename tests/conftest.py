"""The whole service as a user starts it: `bdlab up` in a folder of its own, on a free port, with short leases."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Before torch comes. Two threads on a machine that is busy wait for each other most of the time: a training step took
# ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import httpx2
import hypothesis
import pytest

from app.operations.child_process import before_exec
from app.specs.status import TERMINAL
from tests.processes import alive, descendants, process_title
from tests.servers import S3, Postgres

# On a busy machine an example may take longer than the deadline, which says nothing about the code.
hypothesis.settings.register_profile("without deadline", deadline=None)
hypothesis.settings.load_profile("without deadline")

BDLAB = Path(sys.executable).parent / "bdlab"
PLUGINS = Path(__file__).parent.parent / "examples/plugins"
QUICK = {
    "BDLAB_LEASE_SECONDS": "3",
    "BDLAB_HEARTBEAT_SECONDS": "0.5",
    "BDLAB_RELAY_SECONDS": "0.4",
    "BDLAB_REPUBLISH_SECONDS": "3",
    "BDLAB_STAGE_BUSY_SECONDS": "1",
    "BDLAB_CHECKPOINT_SECONDS": "0",
    "BDLAB_WORKER_THREADS": "1",
    "BDLAB_WORKER_NICENESS": "0",
    "BDLAB_STORAGE_PATIENCE_SECONDS": "2",
    "BDLAB_CHECK_SECONDS": "30",
}
START_SECONDS, STOP_SECONDS = 90.0, 40.0
CHILDREN = ("broker", "api", "relay", "worker", "interactive", "checks")
MAX_TITLE = 15
"""Characters of a process's name that Linux keeps."""
EMBEDDED, SERVERS = "embedded", "servers"
"""Which `stack`: SQLite, Valkey, a folder; or PostgreSQL, Valkey, S3."""
BOTH = pytest.mark.parametrize("stack", [EMBEDDED, SERVERS], indirect=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """How `make test` shares tests out to its processes: all that use the one service go to one of them, which begins
    at once; else a file stays together. With one process this changes nothing but the order."""

    def group(item: pytest.Item) -> str:
        if "stack" not in getattr(item, "fixturenames", ()):
            return item.location[0]
        return item.callspec.params.get("stack", EMBEDDED) if hasattr(item, "callspec") else EMBEDDED

    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    items.sort(key=lambda item: {EMBEDDED: 0, SERVERS: 1}.get(group(item), 2))


class Stack:
    """A service. Once it is started ``url`` and ``client`` reach it; ``home`` is its folder."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.home = home
        self.environment = os.environ | QUICK | {"BDLAB_HOME": str(home)} | environment
        self.client = httpx2.Client(timeout=30)
        self.url = ""

    def start(self) -> None:
        """`bdlab up`, until it says that it is ready."""
        with (self.home.parent / f"{self.home.name}.console").open("ab") as console:
            self.process = subprocess.Popen(
                [BDLAB, "up", "--port", "0"],
                env=self.environment,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=before_exec(0, os.getpid()),  # noqa: PLW1509  # gone with pytest, even if that is killed
            )
        address = self.home / "address"
        self.eventually(
            lambda: address.exists() or self.process.poll() is not None,
            START_SECONDS,
            "the service did not start",
        )
        assert address.exists(), f"the service ended at its start\n{self.logs()}"
        self.url = address.read_text().strip()
        self.client.base_url = self.url

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop the service; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the service did not stop\n{self.logs()}") from None

    def get(self, path: str, **parameters: Any) -> Any:
        """The JSON of a GET that must succeed."""
        answer = self.client.get(path, params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: Any = None, status: int = 202) -> Any:
        """The JSON of a POST that must be answered with ``status``."""
        answer = self.client.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    def submit(self, spec: dict[str, Any]) -> str:
        """Submit an experiment; returns its id."""
        return str(self.post("/v1/experiments", spec)["id"])

    def experiment(self, experiment_id: str) -> Any:
        return self.get(f"/v1/experiments/{experiment_id}")

    def wait(self, experiment_id: str, status: str = "succeeded", timeout: float = 120.0) -> Any:
        """The experiment once it has ended, which must be as ``status``."""
        self.eventually(
            lambda: self.experiment(experiment_id)["status"] in TERMINAL, timeout, "it did not end"
        )
        experiment = self.experiment(experiment_id)
        assert experiment["status"] == status, f"{experiment}\n{self.logs()}"
        return experiment

    def results(self, experiment_id: str) -> Any:
        return self.get(f"/v1/experiments/{experiment_id}/results")

    def pid(self, name: str) -> int:
        """The number of a child process: broker, api, relay, worker (Celery's parent) or interactive."""
        found = self._pids(name)
        assert len(found) == 1, f"{name}: {found}\n{self.logs()}"
        return found[0]

    def training_pid(self) -> int:
        """The number of the process that runs an experiment."""
        (pid,) = descendants(self.pid("worker"))
        return pid

    def kill(self, name: str) -> None:
        """kill -9 one of the children, and wait until it has been started again."""
        before = self.pid(name)
        os.kill(before, signal.SIGKILL)
        self.eventually(lambda: not alive(before), 10, f"{name} did not die")

        # After several deaths it waits for 30 s.
        self.eventually(lambda: self._pids(name), 40, f"{name} was not started again")

    def _pids(self, name: str) -> list[int]:
        title = "valkey-server" if name == "broker" else f"bdlab {name}"[:MAX_TITLE]
        return [pid for pid in descendants(self.process.pid, depth=1) if process_title(pid) == title]

    def eventually(self, happened: Callable[[], Any], timeout: float, otherwise: str) -> Any:
        """Wait until ``happened()`` is true and return its value; else fail with the service's logs."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if value := happened():
                return value
            time.sleep(0.05)
        raise AssertionError(f"{otherwise} within {timeout:.0f} s\n{self.logs()}")

    def logs(self) -> str:
        """The end of every log, for a failed test."""
        files = [self.home.parent / f"{self.home.name}.console", *sorted((self.home / "logs").glob("*.log"))]
        tails = [
            (file, file.read_text(errors="replace").splitlines()[-25:]) for file in files if file.exists()
        ]
        return "\n".join(f"--- {file.name}\n" + "\n".join(lines) for file, lines in tails)


@contextmanager
def services(folders: pytest.TempPathFactory) -> Iterator[Callable[..., Stack]]:
    """Makes services, each stopped in the end. Keyword arguments: environment variables."""
    made: list[Stack] = []

    def make(**environment: str) -> Stack:
        stack = Stack(folders.mktemp("service") / "home", **environment)
        made.append(stack)
        stack.start()
        return stack

    yield make
    for stack in made:
        stack.client.close()
        stack.stop()


@pytest.fixture(scope="module")
def new_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Stack]]:
    """Makes services that a test may break. None outlives its file, for an idle one still looks for work."""
    with services(tmp_path_factory) as make:
        yield make


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for all tests; each takes a database of its own from it, and leaves it running."""
    with Postgres() as server:
        yield server


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """One server for all tests, which leave it running."""
    with S3() as server:
        yield server


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One service with the defaults and the example plug-ins, for all tests that leave it as it was."""
    with services(tmp_path_factory) as make:
        yield make(BDLAB_PLUGINS_DIR=str(PLUGINS))


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest) -> Stack:
    """The embedded one, or each of those for which a module's mark `BOTH` asks."""
    stack: Stack = request.getfixturevalue(getattr(request, "param", EMBEDDED))
    return stack
