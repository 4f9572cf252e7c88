"""GET /v1/workers: what workers say of themselves, and what waits for them."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from app.core.database import utcnow
from app.core.versions import code_version
from app.tables.experiments import WorkerHeartbeat
from tests.app.conftest import Service
from tests.app.people import People, people, submitted
from tests.app.sending import sent_model

NAME = "host:7:cpu"


def worker(name: str = NAME, seconds_ago: float = 0.0, **fields: Any) -> WorkerHeartbeat:
    now = utcnow()
    values = {
        "queue": name.rpartition(":")[2].replace("+", ","),
        "device": "a chip",
        "version": code_version(),
        "started_at": now - timedelta(hours=1),
        "seen_at": now - timedelta(seconds=seconds_ago),
    }
    return WorkerHeartbeat(name=name, **(values | fields))


def named(service: Service, name: str) -> dict[str, Any]:
    listed = service.http.get("/v1/workers").json()["workers"]
    return {found["name"]: found for found in listed}[name]


def queue(service: Service, name: str) -> dict[str, Any]:
    listed = service.http.get("/v1/workers").json()["queues"]
    return {found["name"]: found for found in listed}[name]


def test_a_worker_is_described(service: Service) -> None:
    memory = {"device_total": 80, "device_used": 3, "host_total": 100, "host_used": 10}
    service.add(worker("gpu:1:gpu", 2.0, device_kind="gpu", device="NVIDIA H100", memory=memory))
    found = named(service, "gpu:1:gpu")
    assert found["device"] == {"kind": "gpu", "name": "NVIDIA H100"}
    assert found["memory"] == memory
    assert found["queues"] == ["gpu"]
    assert (found["state"], found["experiment_id"]) == ("idle", None)
    assert 2.0 <= found["seconds_since_sign"] < 20
    assert found["same_version"] is True


def test_states_follow_what_happens(service: Service) -> None:
    service.add(
        worker("busy:1:cpu"),
        worker("draining:1:cpu", state="draining"),
        worker("lost:1:cpu", 31.0, state="busy"),
        worker("checks:1:checks", state="busy"),
        worker("both:1:checks+interactive"),
    )
    before = queue(service, "cpu")
    mine = service.submit()["id"]
    assert queue(service, "cpu")["waiting"] == before["waiting"] + 1
    assert queue(service, "cpu")["oldest_seconds"] >= 0
    service.start(mine, worker="busy:1:cpu")
    assert named(service, "busy:1:cpu")["state"] == "busy"
    assert named(service, "busy:1:cpu")["experiment_id"] == mine
    after = queue(service, "cpu")
    assert (after["waiting"], after["running"]) == (before["waiting"], before["running"] + 1)
    for name, state in (("draining", "draining"), ("lost", "lost")):
        assert named(service, f"{name}:1:cpu")["state"] == state
    assert named(service, "checks:1:checks")["state"] == "busy"
    assert named(service, "both:1:checks+interactive")["queues"] == ["checks", "interactive"]
    assert queue(service, "checks")["workers"] == 2
    assert queue(service, "interactive")["waiting"] is None  # this service has no broker
    listed = service.http.get("/v1/workers").json()["workers"]
    alive = [w for w in listed if "cpu" in w["queues"] and w["state"] != "lost"]
    assert queue(service, "cpu")["workers"] == len(alive)


def test_uploads_that_wait_for_their_check_are_counted(service: Service) -> None:
    before = queue(service, "checks")["waiting"]
    sent_model(service.http)
    assert queue(service, "checks")["waiting"] == before + 1


def test_another_version_is_said(service: Service) -> None:
    service.add(worker("old:1:cpu", version="0.0.1+000000000000"))
    answer = service.http.get("/v1/workers").json()
    assert (
        f"worker old:1:cpu runs version 0.0.1+000000000000, not {code_version()} as here"
        in answer["warnings"]
    )
    assert named(service, "old:1:cpu")["same_version"] is False


@pytest.fixture
def team(tmp_path: Path) -> Iterator[People]:
    with people(tmp_path) as running:
        yield running


def test_what_a_worker_runs_is_its_owners_affair(team: People) -> None:
    ann, bob, boss = team.of("ann", "read", "write"), team.of("bob", "read"), team.of("boss", "read", "admin")
    mine = submitted(ann)
    team.service.add(worker())
    team.service.start(mine, worker=NAME)
    [as_ann], [as_bob], [as_boss] = (who.get("/v1/workers").json()["workers"] for who in (ann, bob, boss))
    assert [w["state"] for w in (as_ann, as_bob, as_boss)] == ["busy"] * 3
    assert [w["experiment_id"] for w in (as_ann, as_bob, as_boss)] == [mine, None, mine]
