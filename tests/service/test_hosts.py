"""Three hosts as network namespaces: a service and two workers, one of which loses its link for a while.

Skipped unless run by root with permission to create namespaces. The namespaces have no route to other networks.
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

TIMEOUT = 180.0
PREFIX = f"bdlab{os.getpid()}"
SERVICE = f"{PREFIX}-s"
DATABASE, BROKER = 5432, 6379
FORWARDER = """
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
"""Runs on the service's host and forwards its ports to the sockets of the servers, which are outside the namespaces."""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def skip_reason() -> str:
    if sys.platform != "linux" or shutil.which("ip") is None:
        return "iproute2 is not installed"
    if os.geteuid() != 0:
        return "only root may create network namespaces"
    try:
        ip("netns", "add", f"{PREFIX}-try")
        ip("netns", "delete", f"{PREFIX}-try")
    except subprocess.CalledProcessError as error:
        return f"network namespaces cannot be created: {error.stderr.decode().strip()}"
    return ""


class Hosts:
    """Two workers that reach the service's database and broker over separate links."""

    def __init__(self, service: Service, folder: Path) -> None:
        self.service, self.folder = service, folder
        self.workers: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, number: int) -> None:
        """A training worker on host ``number``."""
        address = f"10.213.{number}.1"
        home = self.service.settings.home_dir
        database = make_url(self.service.settings.database).set(host=address, port=DATABASE, query={})
        environment = QUICK | {
            "BDLAB_HOME": str(self.folder / f"host-{number}"),
            "BDLAB_DATABASE_URL": database.render_as_string(hide_password=False),
            "BDLAB_BROKER_URL": f"redis://{address}:{BROKER}/0",
            "BDLAB_OBJECTS_URL": (home / "objects").as_uri(),  # all hosts share this folder
        }
        with (self.folder / f"host-{number}.log").open("wb") as log:
            self.workers[number] = subprocess.Popen(
                ["ip", "netns", "exec", f"{PREFIX}-{number}", BDLAB, "worker", "--gpu", "none"],
                env=os.environ | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=before_exec(0, os.getpid()),  # noqa: PLW1509
            )
        wait_for(lambda: self.state(number) == "idle", f"worker {number}", TIMEOUT)

    def name(self, number: int) -> str:
        return f"{os.uname().nodename}:{self.workers[number].pid}:cpu"

    def entry(self, number: int) -> Any:
        listed = self.service.http.get("/v1/workers").json()["workers"]
        return {worker["name"]: worker for worker in listed}.get(self.name(number))

    def state(self, number: int) -> str:
        entry = self.entry(number)
        return entry["state"] if entry else ""

    def set_link(self, number: int, state: str) -> None:
        ip("-n", SERVICE, "link", "set", f"to-{number}", state)

    def logs(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in sorted(self.folder.glob("host-*.log")))


@contextmanager
def network() -> Iterator[None]:
    """The namespaces; each worker's host has one link, to the service's host."""
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
    if reason := skip_reason():
        pytest.skip(reason)
    with ExitStack() as stack:
        broker = stack.enter_context(Valkey())
        url = postgres.fresh()
        folder = Path(str(make_url(url).query["host"]))
        (database,) = (path for path in folder.glob(".s.PGSQL.*") if path.suffix != ".lock")
        stack.enter_context(network())
        forwarded = [f"{DATABASE}={database}", f"{BROKER}={broker.socket}"]
        stack.enter_context(
            running(["ip", "netns", "exec", SERVICE, sys.executable, "-c", FORWARDER, *forwarded])
        )
        settings = Settings(
            home=tmp_path / "service",
            database_url=url,
            broker_url=broker.url,
            relay_seconds=0.1,
            republish_seconds=3,
            lease_seconds=3,
            heartbeat_seconds=0.5,
        )
        service = stack.enter_context(serve(settings))
        stack.enter_context(relaying(settings))
        hosts = Hosts(service, tmp_path)
        yield hosts
        for process in hosts.workers.values():
            process.send_signal(signal.SIGKILL)
            process.wait()


@pytest.mark.long
def test_a_host_that_loses_its_network_costs_one_attempt(hosts: Hosts) -> None:
    service = hosts.service
    hosts.start(1)
    experiment_id = service.submit(spec(seed=40, epochs=15, images=400))["id"]
    wait_for(lambda: (service.get(experiment_id)["progress"].get("epoch") or 0) >= 2, "the training", TIMEOUT)
    hosts.set_link(1, "down")
    hosts.start(2)
    other = service.submit(spec(seed=41, epochs=2, defenses=[]))["id"]
    ended: dict[str, Any] = {}
    for one in (other, experiment_id):
        wait_for(lambda one=one: service.get(one)["status"] in TERMINAL, "the end", TIMEOUT)
        ended[one] = service.get(one)
        assert ended[one]["status"] == "succeeded", f"{ended[one]}\n{hosts.logs()}"
    first, second = ended[experiment_id]["attempts"]
    assert (first["outcome"], first["worker"]) == ("lost", hosts.name(1))
    assert (second["outcome"], second["worker"]) == ("succeeded", hosts.name(2))
    hosts.set_link(1, "up")
    last_seen = (hosts.entry(1) or {"seen_at": ""})["seen_at"]
    wait_for(
        lambda: (hosts.entry(1) or {"seen_at": ""})["seen_at"] > last_seen,
        "a heartbeat of the reconnected worker",
        TIMEOUT,
    )
    # It is connected again and has written nothing to the experiment that it lost.
    wait_for(lambda: hosts.state(1) == "idle", "an idle worker", TIMEOUT)
    assert service.get(experiment_id) == ended[experiment_id]
    hosts.workers.pop(2).kill()
    reproduction = service.http.post(f"/v1/experiments/{experiment_id}:reproduce").json()["id"]
    wait_for(lambda: service.get(reproduction)["status"] in TERMINAL, "the end", TIMEOUT)
    [attempt] = service.get(reproduction)["attempts"]
    assert (attempt["outcome"], attempt["worker"]) == ("succeeded", hosts.name(1))
    results = [
        service.http.get(f"/v1/experiments/{one}/results").json() for one in (experiment_id, reproduction)
    ]
    assert numbers(results[0]) == numbers(results[1])
