"""Several worker processes on one service: shared stages, and the shutdown of a worker."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.operations.child_process import before_exec
from app.settings import Settings
from app.specs.status import TERMINAL
from tests.app.conftest import Service, relaying, serve
from tests.conftest import BDLAB, QUICK
from tests.processes import wait_for
from tests.servers import Valkey
from tests.service.specs import numbers, spec

TIMEOUT = 240.0
SHUTDOWN_TIMEOUT = 30.0


class Fleet:
    """A service, and the `bdlab worker` processes that a test starts."""

    def __init__(self, service: Service, folder: Path) -> None:
        self.service, self.folder = service, folder
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        """Start a training worker and wait until the API lists it."""
        settings = self.service.settings
        environment = {
            "BDLAB_HOME": str(settings.home),
            "BDLAB_BROKER_URL": settings.broker_url,
            "BDLAB_LEASE_SECONDS": str(settings.lease_seconds),
        }
        with (self.folder / f"worker-{len(self.running)}.log").open("wb") as log:
            process = subprocess.Popen(
                [BDLAB, "worker", "--gpu", "none"],
                env=os.environ | QUICK | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=before_exec(0, os.getpid()),  # noqa: PLW1509  # gone with pytest, even if that is killed
            )
        self.running.append(process)
        wait_for(lambda: self.name(process) in self.workers(), "the worker", TIMEOUT)
        return process

    def name(self, process: subprocess.Popen[bytes]) -> str:
        return f"{os.uname().nodename}:{process.pid}:cpu"

    def workers(self) -> dict[str, Any]:
        listed = self.service.http.get("/v1/workers").json()["workers"]
        return {worker["name"]: worker for worker in listed}

    def wait(self, experiment_id: str) -> Any:
        """Wait until the experiment has succeeded, and return it."""

        def ended() -> Any:
            experiment = self.service.get(experiment_id)
            return experiment["status"] in TERMINAL and experiment

        experiment = wait_for(ended, "the end", TIMEOUT)
        assert experiment["status"] == "succeeded", f"{experiment}\n{self.logs()}"
        return experiment

    def results(self, experiment_id: str) -> Any:
        return self.service.http.get(f"/v1/experiments/{experiment_id}/results").json()

    def manifest(self, experiment_id: str) -> Any:
        return self.service.http.get(f"/v1/experiments/{experiment_id}/manifest").json()

    def log(self, experiment_id: str) -> str:
        headers = {"Accept": "text/plain"}
        return str(self.service.http.get(f"/v1/experiments/{experiment_id}/logs", headers=headers).text)

    def logs(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in sorted(self.folder.glob("worker-*.log")))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    with Valkey() as broker:
        settings = Settings(
            home=folder / "home",
            broker_url=broker.url,
            relay_seconds=0.1,
            republish_seconds=3,
            lease_seconds=30,
        )
        with serve(settings) as service, relaying(settings):
            fleet = Fleet(service, folder)
            yield fleet
            for process in fleet.running:
                process.kill()
                process.wait()


@pytest.mark.long  # a minute; test_kills.py and test_faults.py stop workers by default, too
def test_sigterm_requeues_the_run_and_its_numbers_stay_the_same(fleet: Fleet) -> None:
    first = fleet.start()
    experiment_id = fleet.service.submit(spec(seed=30, epochs=10, images=400))["id"]

    def is_training() -> Any:
        return (fleet.service.get(experiment_id)["progress"].get("epoch") or 0) >= 2

    wait_for(is_training, "the training", TIMEOUT)
    assert fleet.workers()[fleet.name(first)]["experiment_id"] == experiment_id
    signaled_at = time.monotonic()
    first.send_signal(signal.SIGTERM)
    wait_for(
        lambda: fleet.service.get(experiment_id)["status"] == "queued",
        "the requeued experiment",
        SHUTDOWN_TIMEOUT,
    )
    assert first.wait(SHUTDOWN_TIMEOUT) == 0, fleet.logs()
    assert time.monotonic() - signaled_at < SHUTDOWN_TIMEOUT
    assert fleet.name(first) not in fleet.workers()
    [attempt] = fleet.service.get(experiment_id)["attempts"]
    assert (attempt["outcome"], attempt["reason"]) == ("waiting", "the worker shut down")
    fleet.start()
    resumed = fleet.wait(experiment_id)
    assert resumed["attempts_left"] == fleet.service.settings.max_attempts  # a shutdown does not count
    assert "resumed from a checkpoint" in fleet.log(experiment_id)
    reproduction = fleet.service.http.post(f"/v1/experiments/{experiment_id}:reproduce").json()["id"]
    fleet.wait(reproduction)
    assert numbers(fleet.results(experiment_id)) == numbers(fleet.results(reproduction))


def test_a_stage_that_two_workers_need_is_computed_once(fleet: Fleet) -> None:
    while len(fleet.workers()) < 2:
        fleet.start()
    experiment_ids = [
        fleet.service.submit(spec(seed=31, epochs=10, images=400, tags={"copy": copy}))["id"] for copy in "ab"
    ]
    ended = [fleet.wait(one) for one in experiment_ids]
    assert len({attempt["worker"] for one in ended for attempt in one["attempts"]}) == 2
    started = [
        line for one in experiment_ids for line in fleet.log(one).splitlines() if line.endswith(": started")
    ]
    titles = [line.partition("] ")[2] for line in started]
    stages = fleet.manifest(experiment_ids[0])["stages"]
    assert len(titles) == len(set(titles)) == len(stages), titles
    first, second = (numbers(fleet.results(one)) for one in experiment_ids)
    assert first == second
