"""A poll costs one query as long as nothing happens, and shows whatever happened."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from app.core.poll_cache import MAX_ANSWERS, Answer, PollCache
from app.experiments import lifecycle
from app.experiments.schemas import ExperimentOut
from app.settings import Settings
from tests.app.conftest import Service, serve
from tests.app.numbers import record
from tests.servers import Postgres


@pytest.fixture(params=["sqlite", "postgresql"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    url = "" if request.param == "sqlite" else request.getfixturevalue("postgres").fresh()
    with serve(Settings(home=tmp_path, data_dir=tmp_path, database_url=url)) as running:
        yield running


@contextmanager
def statements() -> Iterator[list[str]]:
    """What any engine of this process is told meanwhile."""
    told: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        told.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield told
    finally:
        event.remove(Engine, "before_cursor_execute", note)


OF_SPEC = {"spec", "spec_hash", "dataset", "model", "attack", "defenses", "tags"}
CONSTANT = {"id", "name", "created_at", "links"} | OF_SPEC
IN_KEY = {"status", "attempts_left", "queued_at", "finished_at", "cancel_requested_at", "sweep"}
WITH_EVENT = {"progress", "attempts", "summary", "error", "started_at"}
"""Fields that change only in a transaction that also writes an event, whose id is part of the key."""


def test_every_field_is_covered_by_the_key_of_the_cache() -> None:
    # A new field must be constant, added to `repository.version_key`, or changed together with an event.
    classified = [*CONSTANT, *IN_KEY, *WITH_EVENT]
    assert sorted(classified) == sorted(ExperimentOut.model_fields)


def test_every_change_is_seen_and_nothing_else_is_asked_for(service: Service) -> None:
    submitted = service.submit()
    mine = submitted["id"]
    seen = [service.get(mine)]
    assert seen[0] == submitted

    def shows(**fields: Any) -> None:
        with statements() as first:
            seen.append(service.get(mine))
        with statements() as second:
            assert service.get(mine) == seen[-1]
        assert len([s for s in second if s.startswith("SELECT") and "experiments" in s]) == 1
        assert len(first) > len(second)
        assert seen[-1] != seen[-2]
        assert {name: seen[-1][name] for name in fields} == fields

    attempt = service.start(mine)
    shows(status="running", attempts_left=3)
    progress = {"stage": "victim", "fraction": 0.5}
    with service.database.writing() as session:
        assert lifecycle.still_owned(session, mine, attempt)
        session.execute(
            text("UPDATE experiments SET progress = '{\"fraction\": 0.5}' WHERE id = :id"), {"id": mine}
        )
        lifecycle.emit(session, mine, "progress", progress)
    shows(status="running")
    assert seen[-1]["progress"]["fraction"] == 0.5
    assert service.http.post(submitted["links"]["cancel"]).status_code == 202
    shows(status="running")
    with service.database.writing() as session:
        assert lifecycle.lose(session, mine, attempt, "the worker died")
    shows(status="canceled")
    assert service.http.post(submitted["links"]["retry"]).status_code == 202
    shows(status="queued", attempts_left=3)
    record(service, mine, {("undefended", 0): {"clean_accuracy": 0.5}})
    service.end(mine)
    shows(
        status="succeeded",
        summary=[{"arm": "undefended", "clean_accuracy": 0.5, "attack_success_rate": None}],
    )
    assert service.http.delete(submitted["links"]["self"]).status_code == 204
    assert service.http.get(submitted["links"]["self"]).status_code == 404


def test_a_server_that_was_restarted_is_noticed_before_a_request_fails(
    tmp_path: Path, postgres: Postgres
) -> None:
    url = postgres.fresh()
    with serve(Settings(home=tmp_path, data_dir=tmp_path, database_url=url)) as service:
        mine = service.submit()["id"]
        others = "datname = current_database() AND pid <> pg_backend_pid()"
        end = f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE {others}"
        with service.database.reading() as session:
            assert len(session.execute(text(end)).all()) >= 1
        assert service.get(mine)["id"] == mine
        assert service.submit()["status"] == "queued"


def test_the_answers_of_long_ago_are_forgotten() -> None:
    polled = PollCache()
    answer = Answer.of("{}")
    for number in range(MAX_ANSWERS):
        polled.store(str(number), 1, answer)
    assert polled.get("0", 1) is answer
    polled.store("one more", 1, answer)
    assert polled.get("1", 1) is None
    assert polled.get("0", 2) is None
    assert polled.get("0", 1) is None
