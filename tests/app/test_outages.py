"""What the API says while something that it depends on is away, and that it recovers by itself."""

import errno
import os
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
import pytest
import redis
from sqlalchemy import delete, select, text

from app.core import database
from app.core.context import Context
from app.core.database import utcnow
from app.experiments import lifecycle
from app.operations.health import service as health
from app.settings import Settings
from app.tables.artifacts import Artifact
from app.tables.audit import AuditEntry
from app.tables.experiments import Stage
from app.team.audit import middleware
from tests.app.conftest import Service
from tests.app.sending import sent_model
from tests.processes import wait_for
from tests.servers import Valkey

Serving = Callable[[Settings], AbstractContextManager[Service]]


def refused(answer: Any, word: str) -> None:
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert answer.headers["content-type"] == "application/problem+json"
    assert word in answer.json()["detail"]


def test_the_object_store(service: Service) -> None:
    experiment = service.submit()
    digest, key = service.store(b"data")
    artifact = Artifact(
        experiment_id=experiment["id"],
        name="a",
        kind="data",
        media_type="text/plain",
        size=4,
        sha256=digest,
        object_key=key,
        details={},
        created_at=utcnow(),
    )
    service.add(artifact)
    folder = service.settings.home_dir / "objects"
    aside = folder.with_name("aside")
    folder.rename(aside)
    folder.write_text("not a folder")
    link = f"/v1/artifacts/{artifact.id}/content"
    refused(service.http.get(link), "object store")
    assert service.http.get("/readyz").json()["checks"]["objects"]["ok"] is False
    assert service.http.delete(experiment["links"]["self"]).status_code == 204  # the rows go, the file stays
    folder.unlink()
    aside.rename(folder)
    assert service.objects.exists(key)
    shutil.rmtree(folder / "sha256")


def test_an_object_store_that_is_full(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """It still answers what is read; nearly full, it still accepts the small object with which readiness tests it."""

    def check() -> dict[str, Any]:
        return service.http.get("/readyz").json()["checks"]["objects"]

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(health, "WRITE_SECONDS", 0)
        assert check()["ok"]
        patch.setattr(obstore, "put", refuse)
        assert not check()["ok"]
        assert "No space left on device" in check()["detail"]
    experiment = service.submit()
    attempt = service.start(experiment["id"])
    reason = "object store: cannot write 'stages/a1': No space left on device"
    with service.database.writing() as session:
        assert lifecycle.wait(session, experiment["id"], attempt, 0, reason)
    assert check() == {"ok": False, "detail": f"{reason}; experiments that wait for it: 1"}
    later = utcnow() + timedelta(seconds=1)
    service.add(Stage(key="a1", kind="victim", ready_at=later, last_used_at=later))
    assert check()["ok"]  # another experiment has stored a stage since
    with service.database.writing() as session:
        session.execute(delete(Stage))
    assert not check()["ok"]
    assert reason.replace("'", "&#39;") in service.http.get(f"/experiments/{experiment['id']}").text
    service.end(experiment["id"])
    assert check()["ok"]


def test_a_database_that_accepts_no_writes(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "WRITE_SECONDS", 0)
    with service.database.writing() as session:
        full = "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
        session.execute(text(f"CREATE TRIGGER no_space BEFORE INSERT ON tallies {full}"))
    check = service.http.get("/readyz").json()["checks"]["database"]
    assert (check["ok"], "database or disk is full" in check["detail"]) == (False, True)
    with service.database.writing() as session:
        session.execute(text("DROP TRIGGER no_space"))
    assert service.http.get("/readyz").json()["checks"]["database"]["ok"]


def test_a_broker_without_memory(serving: Serving, tmp_path: Path, valkey: Valkey) -> None:
    def check() -> dict[str, Any]:
        return service.http.get("/readyz").json()["checks"]["broker"]

    client = redis.Redis(unix_socket_path=str(valkey.socket))
    with serving(Settings(home=tmp_path, broker_url=valkey.url)) as service:
        assert check()["ok"]
        client.config_set("maxmemory", "1")
        assert "used memory > 'maxmemory'" in check()["detail"]
        assert service.http.get("/readyz").status_code == 503
        client.config_set("maxmemory", "0")
        assert check()["ok"]


def test_the_database(service: Service) -> None:
    with service.database.writing() as session:
        session.execute(text("ALTER TABLE experiments RENAME TO away"))
    refused(service.http.get("/v1/experiments"), "experiments")
    refused(service.http.post("/v1/experiments", json={}), "experiments")
    page = service.http.get("/")
    assert (page.status_code, page.headers["content-type"]) == (503, "text/html; charset=utf-8")
    assert "A component that the service needs does not respond" in page.text
    assert service.http.get("/readyz").json()["checks"]["database"]["ok"] is False
    assert "bdlab_database_up 0.0" in service.http.get("/metrics").text
    assert service.http.get("/healthz").status_code == 200
    with service.database.writing() as session:
        session.execute(text("ALTER TABLE away RENAME TO experiments"))
    service.submit()


@pytest.mark.parametrize(
    "url", ["/v1/experiments/a%00b", "/v1/experiments?tag=a:%00", "/v1/artifacts/%00/content"]
)
def test_a_character_that_no_database_takes(service: Service, url: str) -> None:
    answer = service.http.get(url)
    assert (answer.status_code, "U+0000" in answer.json()["detail"]) == (400, True)


def test_a_locked_database_is_an_answer_soon_and_its_audit_entry_comes_later(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "REQUEST_BUSY_SECONDS", 0.3)
    monkeypatch.setattr(middleware, "RETRY_SECONDS", 0.2)
    with serving(Settings(home=tmp_path)) as service:
        with service.database.writing() as session:
            session.execute(text("UPDATE owners SET name = name"))
            began = time.monotonic()
            answers = [service.http.post("/v1/experiments", json={}) for _ in range(3)]
            assert time.monotonic() - began < 10  # each request waits for the lock three times at most
            for answer in answers:
                refused(answer, "locked")

        def written() -> list[tuple[int, str]]:
            with service.database.reading() as session:
                return [(e.status, e.request_id) for e in session.scalars(select(AuditEntry))]

        wait_for(lambda: len(written()) == 3, "the audit entries")
        assert written() == [(503, answer.headers["x-request-id"]) for answer in answers]


def test_what_was_accepted_outlasts_a_power_cut(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite waits for the disk before a client gets its answer, and so does a file that a client has sent."""
    with closing(Context.open(service.settings, for_requests=True)) as context:
        for durable, level in ((True, 2), (False, 1)):
            with context.database.writing(durable=durable) as session:
                assert session.scalar(text("PRAGMA synchronous")) == level
    synced: list[str] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    upload = sent_model(service.http)
    folder = service.settings.home_dir / "objects/uploads"
    assert synced == [str(folder / upload), str(folder)]
