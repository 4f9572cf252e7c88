"""kill -9 to every part and every server at each phase of an experiment, on PostgreSQL, Valkey and S3.

`test_faults` kills a worker's child in each stage, on SQLite and a folder.
"""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from sqlalchemy import select

from app.core.database import Database
from app.tables.experiments import Experiment, Outbox
from tests.processes import alive
from tests.service.conftest import Team
from tests.service.phases import PHASES, REPORT, assert_completed_once, curves, reached, record, states
from tests.service.specs import numbers, spec

SPEC = spec(seed=40, epochs=20, images=400)
SHORT = spec(seed=41, epochs=1, reference=False, defenses=[])


def kill_the_control_plane(team: Team) -> None:
    for name in ("api", "relay"):
        team.service.kill(name)
    team.broker.kill()
    team.broker.start()


def kill_the_worker(team: Team) -> None:
    """Kill Celery's parent; the process that trains dies with it."""
    trainer = team.service.training_pid()
    team.service.kill("worker")
    team.service.eventually(lambda: not alive(trainer), 5, "the training outlived its parent")


def kill_the_database(team: Team) -> None:
    team.postgres.kill()
    team.postgres.start()


def interrupt_the_object_store(team: Team) -> None:
    """For three seconds; BDLAB_STORAGE_PATIENCE_SECONDS is 20."""
    team.s3.kill()
    time.sleep(3)
    team.s3.start()


@pytest.fixture(scope="module")
def undisturbed(team: Team) -> Any:
    """The record of an experiment that ran without a failure."""
    experiment_id = team.service.submit(SPEC)
    team.service.wait(experiment_id)
    assert_completed_once(team.service, experiment_id)
    return record(team.service, experiment_id)


# Each takes a minute or two, for every run is reproduced up to six times. test_faults kills the control plane during
# one run, and the tests below every part once.
@pytest.mark.long
@pytest.mark.parametrize(
    "failure", [kill_the_control_plane, kill_the_worker, kill_the_database, interrupt_the_object_store]
)
def test_the_numbers_are_those_of_an_undisturbed_run(
    team: Team, undisturbed: Any, failure: Callable[[Team], None]
) -> None:
    service, original = team.service, undisturbed[0]["id"]
    remaining = list(PHASES)
    while remaining:
        # The run goes on and may pass a phase before the test sees it; the next run is for the missed ones.
        experiment_id = service.post(f"/v1/experiments/{original}:reproduce")["id"]  # uses no cached stage
        hit = []
        for phase in remaining:
            if reached(service, experiment_id, *phase):
                fail_and_recover(team, failure)
                hit.append(phase)
        assert hit, f"{experiment_id} ended before {remaining}"
        remaining = [phase for phase in remaining if phase not in hit]
        service.wait(experiment_id)
        assert_completed_once(service, experiment_id)
        attempts = len(service.experiment(experiment_id)["attempts"])
        # The run may have ended between the report phase and the kill.
        lost = len(hit) - (REPORT in hit)
        assert attempts > lost if failure is kill_the_worker else attempts <= 1 + len(hit)
        _, _, expected_numbers, expected_curves, _ = undisturbed
        assert numbers(service.results(experiment_id)) == expected_numbers
        assert curves(service, experiment_id) == expected_curves
        assert service.get(f"/v1/experiments/{experiment_id}/reproduction")["verdict"] == "agrees"
    assert record(service, original) == undisturbed


def fail_and_recover(team: Team, failure: Callable[[Team], None]) -> None:
    failure(team)
    team.service.until_ready()


def wait_until_published(team: Team, ids: list[str]) -> None:
    """Wait until the relay has published these experiments."""
    database = Database(team.service.environment["BDLAB_DATABASE_URL"])

    def published() -> bool:
        with database.reading() as session:
            rows = session.scalars(select(Outbox).where(Outbox.experiment_id.in_(ids))).all()
        return {row.experiment_id for row in rows if row.published_at is not None} == set(ids)

    team.service.eventually(published, 20, "they were not published")
    database.close()


@pytest.mark.parametrize(
    "failure",
    [kill_the_control_plane, kill_the_database, interrupt_the_object_store],
    ids=lambda h: h.__name__,
)
def test_queued_experiments_are_not_lost(team: Team, failure: Callable[[Team], None]) -> None:
    """The broker has no persistence, so its messages are lost."""
    service = team.service
    os.kill(service.pid("worker"), signal.SIGSTOP)
    experiment_id = service.submit(SHORT)
    wait_until_published(team, [experiment_id])
    failure(team)
    service.until_ready()
    assert service.experiment(experiment_id)["status"] == "queued"
    os.kill(service.pid("worker"), signal.SIGCONT)
    service.wait(experiment_id)
    assert_completed_once(service, experiment_id)
    assert len(service.experiment(experiment_id)["attempts"]) == 1


def test_an_api_killed_between_commit_and_publication(team: Team) -> None:
    """The row exists, but neither response nor message was sent; the client retries with its idempotency key."""
    service = team.service
    database = Database(service.environment["BDLAB_DATABASE_URL"])
    os.kill(service.pid("relay"), signal.SIGSTOP)
    name = "between commit and publication"

    def committed() -> list[str]:
        with database.reading() as session:
            return list(session.scalars(select(Experiment.id).where(Experiment.name == name)))

    def submit() -> str:
        headers = {"Idempotency-Key": name}
        while True:
            try:
                answer = service.client.post("/v1/experiments", json={**SHORT, "name": name}, headers=headers)
            except httpx2.TransportError:
                continue
            assert answer.status_code == 202, answer.text
            return str(answer.json()["id"])

    with ThreadPoolExecutor(1) as pool:
        response = pool.submit(submit)
        (experiment_id,) = service.eventually(committed, 20, "nothing was committed")
        for part in ("api", "relay"):
            service.kill(part)
        assert response.result(30) == experiment_id
    service.until_ready()
    assert submit() == experiment_id
    service.wait(experiment_id)
    assert_completed_once(service, experiment_id)
    assert len(service.experiment(experiment_id)["attempts"]) == 1
    assert committed() == [experiment_id]
    database.close()


def test_submissions_while_the_api_keeps_dying(team: Team) -> None:
    """Four clients retry until they get a response: every idempotency key has one experiment."""
    service = team.service
    os.kill(service.pid("worker"), signal.SIGSTOP)

    def submit(client: int) -> dict[str, str]:
        """Submit eight experiments; returns their ids by idempotency key."""
        ids: dict[str, str] = {}
        while len(ids) < 8:
            key = f"client {client}, submission {len(ids)}"
            body, headers = {**SHORT, "name": key}, {"Idempotency-Key": key}
            try:
                answer = service.client.post("/v1/experiments", json=body, headers=headers)
                assert answer.status_code == 202, answer.text
                ids[key] = answer.json()["id"]
            except httpx2.TransportError:
                time.sleep(0.05)
        return ids

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(submit, number) for number in range(4)]
        for _ in range(3):
            time.sleep(0.05)
            service.kill("api")
            service.eventually(lambda: service.answers("/healthz"), 30, "the API did not come back")
        ids = {key: experiment_id for client in clients for key, experiment_id in client.result(30).items()}
    database = Database(service.environment["BDLAB_DATABASE_URL"])
    with database.reading() as session:
        rows = session.execute(
            select(Experiment.name, Experiment.id).where(Experiment.name.startswith("client "))
        )
        assert sorted(rows.all()) == sorted(ids.items())
    database.close()
    for experiment_id in ids.values():
        service.post(f"/v1/experiments/{experiment_id}:cancel")
        assert states(service, experiment_id) == ["queued", "canceled"]
    os.kill(service.pid("worker"), signal.SIGCONT)
