"""kill -9 to every part, and to every server below, at each phase of an experiment; on PostgreSQL, Valkey and S3.

A worker's child killed in each stage, on SQLite and a folder, is in `test_faults`.
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
from tests.service.phases import PHASES, REPORT, completed_once, curves, reached, record, states
from tests.service.specs import numbers, spec

WANTED = spec(seed=40, epochs=20, images=400)


def kill_the_control_plane(team: Team) -> None:
    for name in ("api", "relay"):
        team.service.kill(name)
    team.broker.kill()
    team.broker.start()


def kill_the_worker(team: Team) -> None:
    """Celery's parent, with which the process that trains dies."""
    trainer = team.service.training_pid()
    team.service.kill("worker")
    team.service.eventually(lambda: not alive(trainer), 5, "the training outlived its parent")


def kill_the_database(team: Team) -> None:
    team.postgres.kill()
    team.postgres.start()


def take_the_objects_away(team: Team) -> None:
    """For three seconds, with a patience of 20 for the 120 that a worker has by default."""
    team.s3.kill()
    time.sleep(3)
    team.s3.start()


@pytest.fixture(scope="module")
def undisturbed(team: Team) -> Any:
    """The record of an experiment to which nothing happened."""
    mine = team.service.submit(WANTED)
    team.service.wait(mine)
    completed_once(team.service, mine)
    return record(team.service, mine)


@pytest.mark.parametrize(
    "harm",
    [
        kill_the_control_plane,
        pytest.param(kill_the_worker, marks=pytest.mark.long),
        # Each form takes a minute or two; that of the control plane reproduces as many runs as the others.
        pytest.param(kill_the_database, marks=pytest.mark.long),
        pytest.param(take_the_objects_away, marks=pytest.mark.long),
    ],
)
def test_the_numbers_are_those_of_an_undisturbed_run(
    team: Team, undisturbed: Any, harm: Callable[[Team], None]
) -> None:
    service, original = team.service, undisturbed[0]["id"]
    left = list(PHASES)
    while left:
        # A run that goes on meanwhile may be past a phase before the test looks: the next one is for that.
        mine = service.post(f"/v1/experiments/{original}:reproduce")["id"]  # computes all afresh
        hit = [phase for phase in left if reached(service, mine, *phase) and not break_it(team, harm)]
        assert hit, f"{mine} ended before {left}"
        left = [phase for phase in left if phase not in hit]
        service.wait(mine)
        completed_once(service, mine)
        tries = len(service.experiment(mine)["attempts"])
        # Between the last look at the report and the kill the run may have come to its end.
        lost = len(hit) - (REPORT in hit)
        assert tries > lost if harm is kill_the_worker else tries <= 1 + len(hit)
        _, _, its_numbers, its_curves, _ = undisturbed
        assert numbers(service.results(mine)) == its_numbers
        assert curves(service, mine) == its_curves
        assert service.get(f"/v1/experiments/{mine}/reproduction")["verdict"] == "agrees"
    assert record(service, original) == undisturbed


def break_it(team: Team, harm: Callable[[Team], None]) -> None:
    harm(team)
    team.service.until_ready()


def queued(team: Team, ids: list[str]) -> None:
    """Wait until the relay has published all of these."""
    database = Database(team.service.environment["BDLAB_DATABASE_URL"])

    def published() -> bool:
        with database.reading() as session:
            rows = session.scalars(select(Outbox).where(Outbox.experiment_id.in_(ids))).all()
        return {row.experiment_id for row in rows if row.published_at is not None} == set(ids)

    team.service.eventually(published, 20, "they were not published")
    database.close()


@pytest.mark.parametrize(
    "harm", [kill_the_control_plane, kill_the_database, take_the_objects_away], ids=lambda h: h.__name__
)
def test_what_waits_in_the_queue_is_not_lost(
    team: Team, undisturbed: Any, harm: Callable[[Team], None]
) -> None:
    """The broker keeps nothing on disk, so its messages die with it."""
    service = team.service
    os.kill(service.pid("worker"), signal.SIGSTOP)
    mine = service.submit(WANTED)
    queued(team, [mine])
    harm(team)
    service.until_ready()
    assert service.experiment(mine)["status"] == "queued"
    os.kill(service.pid("worker"), signal.SIGCONT)
    service.wait(mine)
    completed_once(service, mine)
    assert len(service.experiment(mine)["attempts"]) == 1


def test_an_api_killed_between_commit_and_publication(team: Team, undisturbed: Any) -> None:
    """The row is there, the answer and the message are not; the client asks again with its key."""
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
                answer = service.client.post(
                    "/v1/experiments", json={**WANTED, "name": name}, headers=headers
                )
            except httpx2.TransportError:
                continue
            assert answer.status_code == 202, answer.text
            return str(answer.json()["id"])

    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(submit)
        (mine,) = service.eventually(committed, 20, "nothing was committed")
        for part in ("api", "relay"):
            service.kill(part)
        assert told.result(30) == mine
    service.until_ready()
    assert submit() == mine
    service.wait(mine)
    completed_once(service, mine)
    assert len(service.experiment(mine)["attempts"]) == 1
    assert committed() == [mine]
    database.close()


def test_submissions_while_the_api_keeps_dying(team: Team) -> None:
    """Four clients that ask until they are answered: every key has one experiment."""
    service = team.service
    os.kill(service.pid("worker"), signal.SIGSTOP)

    def submit(client: int) -> dict[str, str]:
        """The id under each key that this client sent."""
        told: dict[str, str] = {}
        while len(told) < 8:
            key = f"client {client}, submission {len(told)}"
            body, headers = {**WANTED, "name": key}, {"Idempotency-Key": key}
            try:
                answer = service.client.post("/v1/experiments", json=body, headers=headers)
                assert answer.status_code == 202, answer.text
                told[key] = answer.json()["id"]
            except httpx2.TransportError:
                time.sleep(0.05)
        return told

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(submit, number) for number in range(4)]
        for _ in range(3):
            time.sleep(0.05)
            service.kill("api")
            service.eventually(lambda: service.answers("/healthz"), 30, "the API did not come back")
        told = {key: mine for client in clients for key, mine in client.result(30).items()}
    database = Database(service.environment["BDLAB_DATABASE_URL"])
    with database.reading() as session:
        rows = session.execute(
            select(Experiment.name, Experiment.id).where(Experiment.name.startswith("client "))
        )
        assert sorted(rows.all()) == sorted(told.items())
    database.close()
    for mine in told.values():
        service.post(f"/v1/experiments/{mine}:cancel")
        assert states(service, mine) == ["queued", "canceled"]
    os.kill(service.pid("worker"), signal.SIGCONT)
