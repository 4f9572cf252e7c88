"""What breaks, and what the service makes of it: nothing is lost, and the numbers stay the same."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from app.settings import Settings
from tests.conftest import Stack
from tests.processes import alive, descendants
from tests.service.phases import STAGES, completed_once, log, wait_for_phase
from tests.service.specs import numbers, spec


@pytest.fixture(scope="module")
def sturdy(new_stack: Callable[..., Stack]) -> Stack:
    """A service of our own to break, with attempts to spare."""
    return new_stack(BDLAB_MAX_ATTEMPTS="20", BDLAB_LEASE_SECONDS="2")


def reference(wanted: dict[str, Any], folder: Path) -> Any:
    """The results of the same spec without any service, on one thread as the service's worker."""
    (folder / "spec.json").write_text(json.dumps(wanted))
    subprocess.run(
        [sys.executable, "-m", "worker.lab", folder / "spec.json", "--out", folder / "out"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=120,
    )
    return json.loads((folder / "out" / "results.json").read_text())


@pytest.mark.parametrize(
    "stages",
    [
        pytest.param(STAGES[1::2], id="two_stages"),
        # Five kills, each with the start of a worker after it, take two minutes; two show the same in one.
        pytest.param(STAGES, id="every_stage", marks=pytest.mark.long),
    ],
)
def test_a_worker_killed_in_stages_ends_in_the_same_numbers(
    sturdy: Stack, tmp_path: Path, stages: tuple[tuple[str, str], ...]
) -> None:
    wanted = spec(seed=10 + 100 * len(stages), epochs=20, images=400)
    mine = sturdy.submit(wanted)

    def lost() -> int:
        return [tried["outcome"] for tried in sturdy.experiment(mine)["attempts"]].count("lost")

    for arm, stage in stages:
        wait_for_phase(sturdy, mine, arm, stage)
        before = lost()
        os.kill(sturdy.training_pid(), signal.SIGKILL)
        sturdy.eventually(lambda before=before: lost() > before, 15, "nobody noticed the worker's death")
    ended = sturdy.wait(mine)
    *tries, last = [tried["outcome"] for tried in ended["attempts"]]
    completed_once(sturdy, mine)
    # On a machine that is too busy for this test's short lease an attempt may also be lost without our doing.
    assert len(tries) >= len(stages)
    assert set(tries) == {"lost"}
    assert last == "succeeded"
    assert log(sturdy, mine).count("resumed from a checkpoint") >= len(stages)
    assert numbers(sturdy.results(mine)) == numbers(reference(wanted, tmp_path))


def test_the_embedded_broker_keeps_its_messages(sturdy: Stack) -> None:
    broker = redis.Redis(unix_socket_path=str(Settings(home=sturdy.home).broker_socket))
    os.kill(sturdy.pid("worker"), signal.SIGSTOP)
    mine = sturdy.submit(spec(seed=15, epochs=1, defenses=[]))
    sturdy.eventually(lambda: broker.llen("cpu") == 1, 10, "it was not published")
    time.sleep(1.1)  # the broker writes its file every second
    sturdy.kill("broker")

    def back() -> bool:
        try:
            return bool(broker.ping())
        except redis.ConnectionError:
            return False

    sturdy.eventually(back, 10, "the broker did not come back")
    assert broker.llen("cpu") == 1
    os.kill(sturdy.pid("worker"), signal.SIGCONT)
    sturdy.wait(mine)
    completed_once(sturdy, mine)


def test_a_run_survives_its_surroundings(sturdy: Stack) -> None:
    """API, relay and broker may die without the run noticing; with Celery's parent it dies and is resumed."""
    mine = sturdy.submit(spec(seed=11, epochs=1000, images=400, defenses=[]))
    wait_for_phase(sturdy, mine, "clean", "victim")
    trainer = sturdy.training_pid()
    for name in ("api", "relay", "broker"):
        sturdy.kill(name)
    sturdy.eventually(lambda: sturdy.client.get("/readyz").status_code == 200, 30, "it did not recover")
    assert alive(trainer)
    assert sturdy.experiment(mine)["status"] == "running"
    assert len(sturdy.experiment(mine)["attempts"]) == 1
    sturdy.kill("worker")
    sturdy.eventually(lambda: not alive(trainer), 5, "the training outlived its parent")
    resumed = "resumed from a checkpoint"
    sturdy.eventually(lambda: resumed in log(sturdy, mine), 60, "nobody took the run up again")
    assert [tried["outcome"] for tried in sturdy.experiment(mine)["attempts"]] == ["lost", None]
    sturdy.post(f"/v1/experiments/{mine}:cancel")
    sturdy.wait(mine, "canceled", timeout=10)


def test_an_object_store_that_fails_ends_the_run_with_the_reason(sturdy: Stack) -> None:
    objects = sturdy.home / "objects"
    mine = sturdy.submit(spec(seed=12, epochs=40, images=400, defenses=[]))
    wait_for_phase(sturdy, mine, "clean", "victim")
    objects.rename(sturdy.home / "away")
    objects.touch()
    try:
        failed = sturdy.wait(mine, "failed", timeout=30)
        assert "object store" in failed["error"]["reason"]
        assert sturdy.client.get("/readyz").status_code == 503
    finally:
        objects.unlink()
        (sturdy.home / "away").rename(objects)
    sturdy.post(f"/v1/experiments/{mine}:retry")
    ended = sturdy.wait(mine)
    outcomes = [tried["outcome"] for tried in ended["attempts"]]
    assert [outcome for outcome in outcomes if outcome != "lost"] == ["failed", "succeeded"]
    assert ended["error"] is None
    for artifact in sturdy.get(f"/v1/experiments/{mine}/artifacts")["artifacts"]:
        assert sturdy.client.get(f"/v1/artifacts/{artifact['id']}/content").status_code == 200


def test_ctrl_c_leaves_nothing_behind_and_the_run_resumes_at_the_next_start(sturdy: Stack) -> None:
    mine = sturdy.submit(spec(seed=13, epochs=40, images=400, defenses=[]))
    wait_for_phase(sturdy, mine, "clean", "victim")
    family = descendants(sturdy.process.pid)
    assert len(family) >= 6
    assert sturdy.stop(signal.SIGINT) == 0
    assert not any(alive(pid) for pid in family)
    left = {path.name for path in sturdy.home.iterdir()}
    assert not left & {"address", "valkey.sock", "bdlab.sqlite3-wal"}
    sturdy.start()
    ended = sturdy.wait(mine)
    assert [tried["outcome"] for tried in ended["attempts"]] == ["waiting", "succeeded"]
    assert "resumed from a checkpoint" in log(sturdy, mine)


def test_killing_the_supervisor_takes_everything_along(sturdy: Stack) -> None:
    family = descendants(sturdy.process.pid)
    os.kill(sturdy.process.pid, signal.SIGKILL)
    sturdy.process.wait()
    sturdy.eventually(lambda: not any(alive(pid) for pid in family), 10, "somebody outlived the supervisor")
    (sturdy.home / "address").unlink()
    sturdy.start()
    sturdy.wait(sturdy.submit(spec(seed=14, epochs=1, defenses=[])))
