"""Failures of processes and back ends: nothing is lost, and the numbers stay the same."""

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

from app.core.broker import Broker
from app.settings import Settings
from app.specs.status import TERMINAL
from tests.conftest import Stack
from tests.processes import alive, descendants
from tests.service.phases import STAGES, assert_completed_once, log, wait_for_phase
from tests.service.specs import numbers, spec


@pytest.fixture(scope="module")
def own_stack(new_stack: Callable[..., Stack]) -> Stack:
    """A service that tests may break, with many attempts."""
    return new_stack(BDLAB_MAX_ATTEMPTS="20", BDLAB_LEASE_SECONDS="2")


def reference(body: dict[str, Any], folder: Path) -> Any:
    """The results of the spec run by the lab alone, on one thread like the service's worker."""
    (folder / "spec.json").write_text(json.dumps(body))
    subprocess.run(
        [sys.executable, "-m", "worker.lab", folder / "spec.json", "--out", folder / "out"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=300,
    )
    return json.loads((folder / "out" / "results.json").read_text())


# Five kills, each followed by the start of a worker, take two minutes. test_reproduce kills once.
@pytest.mark.long
def test_a_run_whose_worker_is_killed_in_every_stage_ends_in_the_same_numbers(
    own_stack: Stack, tmp_path: Path
) -> None:
    body = spec(seed=10, epochs=20, images=400)
    experiment_id = own_stack.submit(body)

    def lost() -> int:
        return [attempt["outcome"] for attempt in own_stack.experiment(experiment_id)["attempts"]].count(
            "lost"
        )

    for arm, stage in STAGES:
        wait_for_phase(own_stack, experiment_id, arm, stage)
        before = lost()
        os.kill(own_stack.training_pid(), signal.SIGKILL)
        own_stack.eventually(lambda before=before: lost() > before, 15, "the worker's death was not noticed")
    ended = own_stack.wait(experiment_id)
    *earlier, last = [attempt["outcome"] for attempt in ended["attempts"]]
    assert_completed_once(own_stack, experiment_id)
    # On a busy machine the short lease may also expire without a kill.
    assert len(earlier) >= len(STAGES)
    assert set(earlier) == {"lost"}
    assert last == "succeeded"
    assert log(own_stack, experiment_id).count("resumed from a checkpoint") >= len(STAGES)
    assert numbers(own_stack.results(experiment_id)) == numbers(reference(body, tmp_path))


TRAINED: dict[str, dict[str, Any]] = {
    "abl_plus": {},
    "nab": {"isolation_epochs": 40, "ranking_window": 1, "labelling_epochs": 80},
    "cbd": {"biased_epochs": 40, "epochs": 40},
    "dbd": {"feature_epochs": 20, "head_epochs": 40, "mixmatch_epochs": 5, "mixmatch_steps": 5},
    "d_st": {"biased_epochs": 40, "tuning_epochs": 20, "feature_epochs": 20, "head_epochs": 40},
    "d_br": {"biased_epochs": 40, "tuning_epochs": 20, "rounds": 20, "least_steps": 4},
    "asd": {"growth_epochs": 4, "loss_epochs": 2, "meta_epochs": 2, "mixmatch_steps": 5},
    "pdb": {"epochs": 40},
    "vab": {"victim_epochs": 20, "mixed_epochs": 5, "suppressed_epochs": 5},
}
"""Every defense that trains on the poisoned set, with stages that are short and can still be met."""


@pytest.mark.long  # 24 kills, each followed by the start of a worker: four minutes
def test_every_defense_that_trains_resumes_where_its_worker_was_killed(
    new_stack: Callable[..., Stack], tmp_path: Path
) -> None:
    stack = new_stack(BDLAB_MAX_ATTEMPTS="100", BDLAB_LEASE_SECONDS="2")
    defenses = [{"name": name, **fields} for name, fields in TRAINED.items()]
    body = spec(seed=18, epochs=40, images=300, reference=False, defenses=defenses)
    experiment_id = stack.submit(body)
    killed: list[tuple[str, str]] = []

    def find_stage_to_kill() -> tuple[str, str] | str | None:
        """A stage that is being computed and was not killed yet, or "ended"."""
        experiment = stack.experiment(experiment_id)
        progress = experiment["progress"]
        if experiment["status"] in TERMINAL:
            return "ended"
        met = progress.get("arm"), progress.get("stage")
        running = experiment["status"] == "running" and (progress.get("epoch") or 0) >= 1
        return met if running and met[0] in TRAINED and met not in killed else None

    while (met := stack.eventually(find_stage_to_kill, 240, "it does not go on")) != "ended":
        before = len(stack.experiment(experiment_id)["attempts"])
        os.kill(stack.training_pid(), signal.SIGKILL)
        stack.eventually(
            lambda before=before: len(stack.experiment(experiment_id)["attempts"]) > before,
            30,
            "no new attempt",
        )
        killed.append(met)
    assert_completed_once(stack, experiment_id)
    assert {arm for arm, _ in killed} == set(TRAINED), killed
    assert numbers(stack.results(experiment_id)) == numbers(reference(body, tmp_path))


def test_the_embedded_broker_keeps_its_messages(own_stack: Stack) -> None:
    broker = redis.Redis(unix_socket_path=str(Settings(home=own_stack.home).broker_socket))
    os.kill(own_stack.pid("worker"), signal.SIGSTOP)
    experiment_id = own_stack.submit(spec(seed=15, epochs=1, defenses=[]))
    own_stack.eventually(lambda: broker.llen("cpu") == 1, 10, "it was not published")
    time.sleep(1.1)  # the broker writes its file every second
    own_stack.kill("broker")

    def back() -> bool:
        try:
            return bool(broker.ping())
        except redis.ConnectionError:
            return False

    own_stack.eventually(back, 10, "the broker did not come back")
    assert broker.llen("cpu") == 1
    os.kill(own_stack.pid("worker"), signal.SIGCONT)
    own_stack.wait(experiment_id)
    assert_completed_once(own_stack, experiment_id)


def test_a_worker_whose_broker_dies_before_it_acknowledges_goes_on(own_stack: Stack) -> None:
    settings = Settings(home=own_stack.home)
    broker, client = Broker(settings.broker), redis.Redis(unix_socket_path=str(settings.broker_socket))

    def idle_children() -> list[int]:
        before = descendants(own_stack.pid("worker"))
        time.sleep(0.3)  # the child of the last run is replaced by another one
        return before if descendants(own_stack.pid("worker")) == before else []

    [child] = own_stack.eventually(idle_children, 20, "the worker has no child")
    os.kill(child, signal.SIGSTOP)  # the message is acknowledged when the child has accepted it
    broker.send_experiment("none", "cpu")
    own_stack.eventually(lambda: client.llen("cpu") == 0, 10, "the message was not received")
    os.kill(own_stack.pid("broker"), signal.SIGKILL)
    os.kill(child, signal.SIGCONT)
    own_stack.wait(own_stack.submit(spec(seed=16, epochs=1, defenses=[])))
    broker.close()


def test_a_run_survives_the_death_of_api_relay_and_broker(own_stack: Stack) -> None:
    """The run goes on while they restart. It dies with Celery's parent, and is resumed."""
    experiment_id = own_stack.submit(spec(seed=11, epochs=1000, images=400, defenses=[]))
    wait_for_phase(own_stack, experiment_id, "clean", "victim")
    trainer = own_stack.training_pid()
    for name in ("api", "relay", "broker"):
        own_stack.kill(name)
    own_stack.eventually(lambda: own_stack.client.get("/readyz").status_code == 200, 30, "it did not recover")
    assert alive(trainer)
    assert own_stack.experiment(experiment_id)["status"] == "running"
    assert len(own_stack.experiment(experiment_id)["attempts"]) == 1
    own_stack.kill("worker")
    own_stack.eventually(lambda: not alive(trainer), 5, "the training outlived its parent")
    resumed = "resumed from a checkpoint"
    own_stack.eventually(lambda: resumed in log(own_stack, experiment_id), 60, "the run was not resumed")
    assert [attempt["outcome"] for attempt in own_stack.experiment(experiment_id)["attempts"]] == [
        "lost",
        None,
    ]
    own_stack.post(f"/v1/experiments/{experiment_id}:cancel")
    own_stack.wait(experiment_id, "canceled", timeout=10)


def test_a_run_waits_for_an_object_store_that_fails(own_stack: Stack) -> None:
    objects = own_stack.home / "objects"
    experiment_id = own_stack.submit(spec(seed=12, epochs=40, images=400, defenses=[]))
    wait_for_phase(own_stack, experiment_id, "clean", "victim")
    objects.rename(own_stack.home / "away")
    objects.touch()
    try:
        waits = own_stack.eventually(
            lambda: [a for a in own_stack.experiment(experiment_id)["attempts"] if a["outcome"] == "waiting"],
            30,
            "it was not requeued",
        )
        assert "object store" in waits[0]["reason"]
        assert own_stack.client.get("/readyz").status_code == 503
    finally:
        objects.unlink()
        (own_stack.home / "away").rename(objects)
    ended = own_stack.wait(experiment_id)
    outcomes = [attempt["outcome"] for attempt in ended["attempts"]]
    assert [outcome for outcome in outcomes if outcome != "lost"] == ["waiting", "succeeded"]
    for artifact in own_stack.get(f"/v1/experiments/{experiment_id}/artifacts")["artifacts"]:
        assert own_stack.client.get(f"/v1/artifacts/{artifact['id']}/content").status_code == 200


def test_ctrl_c_stops_all_processes_and_the_run_resumes_at_the_next_start(own_stack: Stack) -> None:
    experiment_id = own_stack.submit(spec(seed=13, epochs=40, images=400, defenses=[]))
    wait_for_phase(own_stack, experiment_id, "clean", "victim")
    family = descendants(own_stack.process.pid)
    assert len(family) >= 6
    assert own_stack.stop(signal.SIGINT) == 0
    assert not any(alive(pid) for pid in family)
    remaining = {path.name for path in own_stack.home.iterdir()}
    assert not remaining & {"address", "valkey.sock", "bdlab.sqlite3-wal"}
    own_stack.start()
    ended = own_stack.wait(experiment_id)
    assert [attempt["outcome"] for attempt in ended["attempts"]] == ["waiting", "succeeded"]
    assert "resumed from a checkpoint" in log(own_stack, experiment_id)


def test_all_processes_die_with_the_supervisor(own_stack: Stack) -> None:
    family = descendants(own_stack.process.pid)
    os.kill(own_stack.process.pid, signal.SIGKILL)
    own_stack.process.wait()
    own_stack.eventually(
        lambda: not any(alive(pid) for pid in family), 10, "a process outlived the supervisor"
    )
    (own_stack.home / "address").unlink()
    own_stack.start()
    own_stack.wait(own_stack.submit(spec(seed=14, epochs=1, defenses=[])))
