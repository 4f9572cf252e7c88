"""Three hosts, as network namespaces: a service and two workers, with a link that is cut and healed.

Only where root may make namespaces. Nothing leaves this machine: the hosts' network has no way out.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from app.operations.child_process import before_exec
from app.settings import Settings
from app.specs.status import TERMINAL
from tests.app.conftest import Service, relaying, serve
from tests.conftest import BDLAB, QUICK
from tests.processes import wait_for
from tests.servers import Postgres, Valkey
from tests.service.specs import numbers, spec

PATIENCE = 180.0
PREFIX = f"bdlab{os.getpid()}"
SERVICE = f"{PREFIX}-s"
DATABASE, BROKER = 5432, 6379
DOOR = """
import socket, sys, threading
def carry(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    for one in (source, target):
        try:
            one.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
def serve(port, path):
    listener = socket.create_server(("0.0.0.0", port))
    while True:
        near, _ = listener.accept()
        far = socket.socket(socket.AF_UNIX)
        far.connect(path)
        for pair in ((near, far), (far, near)):
            threading.Thread(target=carry, args=pair, daemon=True).start()
for pair in sys.argv[1:]:
    port, path = pair.split("=", 1)
    threading.Thread(target=serve, args=(int(port), path)).start()
"""
"""What the service's host does: its ports lead to the sockets of the servers, which know no namespaces."""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def why_not() -> str:
    if sys.platform != "linux" or shutil.which("ip") is None:
        return "iproute2 is not installed"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    try:
        ip("netns", "add", f"{PREFIX}-try")
        ip("netns", "delete", f"{PREFIX}-try")
    except subprocess.CalledProcessError as error:
        return f"network namespaces cannot be made here: {error.stderr.decode().strip()}"
    return ""


class Hosts:
    """The service's database and broker, reached by two workers over links of their own."""

    def __init__(self, service: Service, folder: Path) -> None:
        self.service, self.folder = service, folder
        self.workers: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, number: int) -> None:
        """A training worker on host ``number``."""
        here = f"10.213.{number}.1"
        home = self.service.settings.home_dir
        database = make_url(self.service.settings.database).set(host=here, port=DATABASE, query={})
        environment = QUICK | {
            "BDLAB_HOME": str(self.folder / f"host-{number}"),
            "BDLAB_DATABASE_URL": database.render_as_string(hide_password=False),
            "BDLAB_BROKER_URL": f"redis://{here}:{BROKER}/0",
            "BDLAB_OBJECTS_URL": (home / "objects").as_uri(),  # a folder that all hosts share
        }
        with (self.folder / f"host-{number}.log").open("wb") as log:
            self.workers[number] = subprocess.Popen(
                ["ip", "netns", "exec", f"{PREFIX}-{number}", BDLAB, "worker", "--gpu", "none"],
                env=os.environ | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=before_exec(0, os.getpid()),  # noqa: PLW1509
            )
        wait_for(lambda: self.state(number) == "idle", f"worker {number}", PATIENCE)

    def name(self, number: int) -> str:
        return f"{os.uname().nodename}:{self.workers[number].pid}:cpu"

    def described(self, number: int) -> Any:
        listed = self.service.http.get("/v1/workers").json()["workers"]
        return {worker["name"]: worker for worker in listed}.get(self.name(number))

    def state(self, number: int) -> str:
        found = self.described(number)
        return found["state"] if found else ""

    def link(self, number: int, state: str) -> None:
        ip("-n", SERVICE, "link", "set", f"to-{number}", state)

    def logs(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in sorted(self.folder.glob("host-*.log")))


@contextmanager
def network() -> Iterator[None]:
    """The namespaces: each worker's host has one link, to the service's."""
    names = [SERVICE, *(f"{PREFIX}-{number}" for number in (1, 2))]
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        for number in (1, 2):
            host, near, far = f"{PREFIX}-{number}", f"to-{number}", "to-service"
            ip("-n", SERVICE, "link", "add", near, "type", "veth", "peer", "name", far, "netns", host)
            ip("-n", SERVICE, "address", "add", f"10.213.{number}.1/30", "dev", near)
            ip("-n", host, "address", "add", f"10.213.{number}.2/30", "dev", far)
            ip("-n", SERVICE, "link", "set", near, "up")
            ip("-n", host, "link", "set", far, "up")
        yield
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@contextmanager
def running(command: list[str]) -> Iterator[None]:
    process = subprocess.Popen(command, preexec_fn=before_exec(0, os.getpid()))  # noqa: PLW1509
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def hosts(tmp_path: Path, postgres: Postgres) -> Iterator[Hosts]:
    if reason := why_not():
        pytest.skip(reason)
    with ExitStack() as stack:
        broker = stack.enter_context(Valkey())
        url = postgres.fresh()
        folder = Path(str(make_url(url).query["host"]))
        (database,) = (path for path in folder.glob(".s.PGSQL.*") if path.suffix != ".lock")
        stack.enter_context(network())
        doors = [f"{DATABASE}={database}", f"{BROKER}={broker.socket}"]
        stack.enter_context(running(["ip", "netns", "exec", SERVICE, sys.executable, "-c", DOOR, *doors]))
        settings = Settings(
            home=tmp_path / "service",
            database_url=url,
            broker_url=broker.url,
            relay_seconds=0.1,
            republish_seconds=3,
            lease_seconds=3,
        )
        service = stack.enter_context(serve(settings))
        stack.enter_context(relaying(settings))
        made = Hosts(service, tmp_path)
        yield made
        for process in made.workers.values():
            process.send_signal(signal.SIGKILL)
            process.wait()


@pytest.mark.long
def test_a_host_that_is_cut_off_costs_an_attempt_and_nothing_else(hosts: Hosts) -> None:
    service = hosts.service
    hosts.start(1)
    mine = service.submit(spec(seed=40, epochs=15, images=400))["id"]
    wait_for(lambda: (service.get(mine)["progress"].get("epoch") or 0) >= 2, "the training", PATIENCE)
    hosts.link(1, "down")
    hosts.start(2)
    other = service.submit(spec(seed=41, epochs=2, defenses=[]))["id"]
    ended: dict[str, Any] = {}
    for one in (other, mine):
        wait_for(lambda one=one: service.get(one)["status"] in TERMINAL, "the end", PATIENCE)
        ended[one] = service.get(one)
        assert ended[one]["status"] == "succeeded", f"{ended[one]}\n{hosts.logs()}"
    lost, done = ended[mine]["attempts"]
    assert (lost["outcome"], lost["worker"]) == ("lost", hosts.name(1))
    assert (done["outcome"], done["worker"]) == ("succeeded", hosts.name(2))
    hosts.link(1, "up")
    last = (hosts.described(1) or {"seen_at": ""})["seen_at"]
    wait_for(lambda: (hosts.described(1) or {"seen_at": ""})["seen_at"] > last, "the healed worker", PATIENCE)
    # Back again, and of its old experiment it has written nothing.
    wait_for(lambda: hosts.state(1) == "idle", "an idle worker", PATIENCE)
    assert service.get(mine) == ended[mine]
    hosts.workers.pop(2).kill()
    afresh = service.http.post(f"/v1/experiments/{mine}:reproduce").json()["id"]
    wait_for(lambda: service.get(afresh)["status"] in TERMINAL, "the end", PATIENCE)
    [attempt] = service.get(afresh)["attempts"]
    assert (attempt["outcome"], attempt["worker"]) == ("succeeded", hosts.name(1))
    results = [service.http.get(f"/v1/experiments/{one}/results").json() for one in (mine, afresh)]
    assert numbers(results[0]) == numbers(results[1])
