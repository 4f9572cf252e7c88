"""Limits of owners: requests, queued and running experiments, device time, stored bytes."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import select, update

from app.core.broker import Broker
from app.core.database import utcnow
from app.experiments import lifecycle, scheduling
from app.operations import relay
from app.tables.experiments import Attempt, Outbox
from app.tables.keys import DeviceTime
from tests.app.conftest import QUICK, Valkey, wait_for
from tests.app.people import People, people, stored, submitted


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    with people(tmp_path_factory.mktemp("home"), quota_queued=2) as service:
        yield service


def refused(answer: httpx2.Response, words: str) -> None:
    assert answer.status_code == 429, answer.text
    assert int(answer.headers["Retry-After"]) > 0
    assert answer.json()["type"] == "urn:backdoor-lab:problem:too-many"
    assert words in answer.json()["detail"]


def limit(made: People, owner: str, **limits: Any) -> None:
    made.of("root").put(f"/v1/owners/{owner}/limits", json=limits).raise_for_status()


def test_queued_experiments(made: People) -> None:
    ann, bob = made.of("ann"), made.of("bob")
    first, _second = submitted(ann), submitted(ann)
    refused(ann.post("/v1/experiments", json=QUICK), "the limit is 2 queued experiments; 2 are used")
    submitted(bob)
    made.service.end(first)
    submitted(ann)
    refused(ann.post(f"/v1/experiments/{first}:retry"), "queued experiments")
    limit(made, "ann", queued=5)
    wait_for(lambda: ann.post("/v1/experiments", json=QUICK).status_code == 202, "the new limit")
    assert ann.get("/v1/me").json()["quotas"]["queued"] == {"used": 3.0, "limit": 5}
    sweep = {"base": {}, "grid": {"training.epochs": [1, 2, 3]}}
    refused(ann.post("/v1/sweeps", json=sweep), "the limit is 5 queued experiments; 3 are used, 3 more")
    assert ann.get("/v1/me").json()["quotas"]["queued"]["used"] == 3  # all of a sweep, or nothing


def test_device_time(made: People) -> None:
    cat = made.of("cat")
    experiment = submitted(cat)
    attempt = made.service.start(experiment)
    with made.service.database.writing() as session:
        began = utcnow() - timedelta(seconds=100)
        session.execute(update(Attempt).where(Attempt.experiment_id == experiment).values(started_at=began))
    assert 100 <= cat.get("/v1/me").json()["quotas"]["device_seconds"]["used"] < 130  # while it runs
    with made.service.database.writing() as session:
        lifecycle.finish(session, experiment, attempt, "succeeded")
    cat.post(f"/v1/experiments/{experiment}:retry").raise_for_status()
    made.service.end(experiment)
    cat.delete(f"/v1/experiments/{experiment}")
    assert 100 <= cat.get("/v1/me").json()["quotas"]["device_seconds"]["used"] < 130  # also when it is gone
    limit(made, "cat", device_seconds=100)
    late = made.of("cat")
    refused(late.post("/v1/experiments", json=QUICK), "100 device seconds in 30 days")
    with made.service.database.writing() as session:
        old = (utcnow() - timedelta(days=40)).date()
        session.execute(update(DeviceTime).values(day=old))
    submitted(late)


def test_stored_bytes(made: People) -> None:
    dan = made.of("dan")
    stored(made.service, submitted(dan), b"x" * 1000)
    limit(made, "dan", bytes=1000)
    refused(made.of("dan").post("/v1/experiments", json=QUICK), "1000 stored bytes; 1000 are used")
    limit(made, "dan", bytes=1001)
    submitted(made.of("dan"))


def test_requests_a_minute(made: People) -> None:
    eve = made.key("eve")
    limit(made, "eve", requests=3)
    client, other = made.client(eve), made.of("eve")
    assert [client.get("/v1/me").status_code for _ in range(3)] == [200] * 3
    refused(other.get("/v1/me"), "eve may send 3 requests a minute")
    assert made.of("ann").get("/v1/me").status_code == 200


def test_requests_are_counted_over_all_api_processes(valkey: Valkey, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.sqlite3'}"
    shared = {"database_url": url, "broker_url": valkey.url, "rate_limit": 4, "secret": "shared"}
    with people(tmp_path / "a", **shared) as one, people(tmp_path / "b", **shared) as two:
        key = one.key("ann")
        clients = [one.client(key), two.client(key)]
        codes = [client.get("/v1/me").status_code for client in clients * 3]
        assert codes == [200] * 4 + [429] * 2
        valkey.kill()
        assert clients[0].get("/v1/me").status_code == 200  # each counts for itself while the broker is away


@pytest.mark.parametrize("body", [{"queued": -1}, {"requests": 0}, {"quede": 1}])
def test_wrong_limits(made: People, body: dict[str, Any]) -> None:
    made.key("fay")
    answer = made.of("root").put("/v1/owners/fay/limits", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, next(iter(body)))
    assert made.of("root").put("/v1/owners/nobody/limits", json={}).status_code == 404


def test_running_experiments_are_held_back_by_the_relay_and_at_the_claim(
    valkey: Valkey, tmp_path: Path
) -> None:
    with people(tmp_path, broker_url=valkey.url, quota_running=2) as made:
        service, broker = made.service, Broker(valkey.url)
        ann = [submitted(made.of("ann")) for _ in range(4)]
        bob = [submitted(made.of("bob"))]

        def waiting() -> set[str]:
            """Experiments whose message waits in the database."""
            with service.database.reading() as session:
                return set(session.scalars(select(Outbox.experiment_id).where(Outbox.published_at.is_(None))))

        def step() -> None:
            relay.step(service.settings, service.database, broker)

        def claim(experiment: str) -> str | None:
            """As a worker does it that gets this message."""
            with service.database.writing() as session:
                taken = scheduling.claim_next(session, experiment, "w", ["cpu"], service.settings)
                return taken.experiment_id if taken is not None else None

        step()
        step()
        assert broker.pending("cpu") == 3
        assert waiting() == set(ann[2:])
        taken = [claim(one) for one in (ann[0], ann[1], ann[2], bob[0])]
        assert set(taken) == {ann[0], ann[1], bob[0], None}
        assert taken.index(bob[0]) < 2  # owners take turns
        assert taken[3] is None
        step()
        assert waiting() == set(ann[2:])
        with service.database.writing() as session:
            lifecycle.finish(session, ann[0], 1, "succeeded")
        step()
        assert waiting() == {ann[3]}
        assert claim(ann[2]) == ann[2]
        broker.close()
