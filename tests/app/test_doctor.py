"""`bdlab doctor`: one line for each check, which says what is wrong and how to fix it."""

import json
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from app.core.database import Database, utcnow
from app.core.security import make_signer
from app.core.versions import code_version
from app.experiments import lifecycle
from app.operations import schema
from app.operations.doctor.examination import CHECKS, examine
from app.operations.doctor.findings import Finding
from app.settings import Settings
from app.tables.experiments import Outbox, WorkerHeartbeat
from app.team.keys import service as keys
from app.team.keys.schemas import KeyRequest
from app.team.keys.secrets import Pepper
from tests.app.conftest import Service, Valkey
from tests.databases import migrate
from tests.test_cli import bdlab

Look = Callable[..., list[Finding]]


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Look:
    """Examines a home of the test's own under more settings; all but torch, which takes seconds to load."""
    monkeypatch.setitem(CHECKS, "torch", lambda _installation: iter(()))

    def examined(**more: str) -> list[Finding]:
        with monkeypatch.context() as patch:
            patch.setenv("BDLAB_HOME", str(tmp_path / "home"))
            patch.setenv("BDLAB_DATA_DIR", str(tmp_path / "data"))
            for name, value in more.items():
                patch.setenv(name, value)
            return list(examine())

    return examined


def told(findings: list[Finding], check: str, state: str) -> str:
    """The lines of a check that are of this state, in one."""
    return "\n".join(f"{f.detail} -> {f.mend}" for f in findings if (f.check, f.state) == (check, state))


def alive(queue: str, **more: Any) -> WorkerHeartbeat:
    return WorkerHeartbeat(
        **{
            "name": f"h:1:{queue}",
            "queue": queue,
            "device": "cpu",
            "version": code_version(),
            "started_at": utcnow(),
            "seen_at": utcnow(),
        }
        | more
    )


def test_a_healthy_service_has_no_errors(tmp_path: Path, look: Look, valkey: Valkey) -> None:
    settings = Settings(home=tmp_path / "home")
    migrate(settings.database)
    make_signer(settings)
    with closing(Database(settings.database)) as database, database.writing() as session:
        session.add_all(alive(queue) for queue in ("cpu", "interactive", "checks"))
    found = look(BDLAB_BROKER_URL=valkey.url)
    assert [f for f in found if f.state == "error"] == []
    assert "version" not in told(found, "workers", "warning")
    assert not any(f.mend for f in found if f.state == "ok")
    assert "SQLite" in told(found, "database", "ok")
    assert "write-ahead log" in told(found, "database", "ok")
    assert "pending messages: gpu 0, cpu 0" in told(found, "broker", "ok")
    assert not told(found, "broker", "warning")
    assert "written, read and deleted" in told(found, "objects", "ok")
    assert "h:1:cpu (cpu)" in told(found, "workers", "ok")
    assert list((tmp_path / "home" / "objects").iterdir()) == []


def test_a_fresh_machine_is_told_to_start(look: Look, tmp_path: Path) -> None:
    found = look()
    assert "does not exist yet -> run bdlab up" in told(found, "database", "warning")
    assert "bdlab up" in told(found, "broker", "warning")
    assert not (tmp_path / "home" / "bdlab.sqlite3").exists()


@pytest.mark.parametrize(
    ("check", "broken", "detail", "mend"),
    [
        ("settings", {"BDLAB_LEASE_SECONDS": "-1"}, "BDLAB_LEASE_SECONDS='-1'", "greater than 0"),
        ("settings", {"BDLAB_MAX_ATTEMPTS": "many"}, "BDLAB_MAX_ATTEMPTS='many'", "integer"),
        ("settings", {"BDLAB_DATABASE_URL": "nonsense"}, "'nonsense'", "postgresql+psycopg://"),
        ("settings", {"BDLAB_DATABASE_URL": "mysql://u:hush@h/d"}, "mysql://u:***@", "postgresql+psycopg://"),
        (
            "database",
            {"BDLAB_DATABASE_URL": "postgresql+psycopg://u:hush@127.0.0.1:1/d"},
            "u:***@127.0.0.1:1/d: ",
            "start the server",
        ),
        ("settings", {"BDLAB_BROKER_URL": "amqp://127.0.0.1:1"}, "amqp://127.0.0.1:1", "redis://"),
        ("broker", {"BDLAB_BROKER_URL": "redis://:hush@127.0.0.1:1/0"}, "redis://:***@", "start the server"),
        ("broker", {"BDLAB_BROKER_URL": "redis://h:port"}, "redis://h:port", "BDLAB_BROKER_URL"),
        ("settings", {"BDLAB_OBJECTS_URL": "ftp://h/d"}, "ftp://h/d", "s3://"),
        ("objects", {"BDLAB_OBJECTS_URL": "s3://"}, "s3://", "s3://bucket"),
        ("objects", {"BDLAB_OBJECTS_URL": "file:///proc/nope"}, "/proc/nope", "file:///folder"),
        (
            "objects",
            {
                "BDLAB_OBJECTS_URL": "s3://b",
                "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
                "AWS_ACCESS_KEY_ID": "x",
            }
            | {"AWS_SECRET_ACCESS_KEY": "hush", "AWS_REGION": "x"},
            "http://127.0.0.1:1",
            "AWS_ENDPOINT_URL",
        ),
    ],
    ids=str,
)
def test_a_broken_setting_is_one_line_that_says_how_to_fix_it(
    look: Look, check: str, broken: dict[str, str], detail: str, mend: str
) -> None:
    found = look(**broken)
    line = told(found, check, "error")
    assert detail in line.partition(" -> ")[0]
    assert mend in line.partition(" -> ")[2]
    assert not any("\n" in f.detail + f.mend or "hush" in f.detail + f.mend for f in found)


def test_a_misspelt_setting_is_found(look: Look) -> None:
    line = told(look(BDLAB_DATABSE_URL="x"), "settings", "warning")
    assert "BDLAB_DATABSE_URL is not a setting" in line
    assert "did you mean BDLAB_DATABASE_URL?" in line


def test_settings_that_do_not_fit_together(look: Look) -> None:
    assert "late heartbeat" in told(look(BDLAB_HEARTBEAT_SECONDS="20"), "settings", "warning")
    shared = look(BDLAB_DATABASE_URL="postgresql+psycopg://u@127.0.0.1:1/d")
    assert "BDLAB_BROKER_URL is not set" in told(shared, "settings", "warning")
    assert "BDLAB_SECRET is not set" in told(shared, "settings", "warning")


def test_a_schema_that_is_old_new_or_changed(look: Look, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    schema.upgrade(settings.database, "0005")
    assert "revision 0005" in (old := told(look(), "schema", "error"))
    assert "bdlab migrate" in old
    schema.upgrade(settings.database)
    with closing(Database(settings.database)) as database:
        with database.writing() as session:
            session.execute(text("ALTER TABLE outbox ADD COLUMN mine INTEGER"))
        assert "in 1 places" in told(look(), "schema", "error")
        with database.writing() as session:
            session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        assert "newer version" in told(look(), "schema", "error")


def test_a_file_that_is_no_database(look: Look, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "bdlab.sqlite3").write_bytes(b"garbage " * 100)
    assert "not a database" in told(look(), "database", "error")


def test_a_secret_that_others_can_read(look: Look, tmp_path: Path) -> None:
    make_signer(Settings(home=tmp_path / "home"))
    path = tmp_path / "home" / "secret"
    assert "readable only by its owner" in told(look(), "secret", "ok")
    path.chmod(0o644)
    assert f"chmod 600 {path}" in told(look(), "secret", "error")


def test_a_broker_that_forgets(look: Look, valkey: Valkey) -> None:
    import redis  # noqa: PLC0415

    client = redis.Redis(unix_socket_path=str(valkey.folder / "valkey.sock"))
    client.config_set("appendonly", "no")
    client.config_set("maxmemory", "100mb")
    client.config_set("maxmemory-policy", "allkeys-lru")
    found = look(BDLAB_BROKER_URL=valkey.url)
    assert "set maxmemory-policy noeviction" in told(found, "broker", "error")
    assert "set appendonly yes" in told(found, "broker", "warning")


def test_workers_that_are_missing(look: Look, service: Service, valkey: Valkey) -> None:
    service.add(alive("cpu"), alive("checks", seen_at=utcnow() - timedelta(minutes=5)))
    found = look(BDLAB_DATABASE_URL=service.settings.database, BDLAB_BROKER_URL=valkey.url)
    assert "'interactive'" in told(found, "workers", "error")
    assert "'checks'" in told(found, "workers", "error")


def test_a_relay_that_does_not_run(look: Look, service: Service) -> None:
    made = service.submit()
    url = {"BDLAB_DATABASE_URL": service.settings.database}
    assert "no message and no lease is overdue" in told(look(**url), "relay", "ok")
    with service.database.writing() as session:
        message = session.query(Outbox).filter_by(experiment_id=made["id"]).one()
        message.not_before = utcnow() - timedelta(minutes=5)
    assert "1 messages are overdue" in told(look(**url), "relay", "warning")
    with service.database.writing() as session:
        assert lifecycle.claim(session, made["id"], "dead", -300) == 1
    assert "1 leases expired" in told(look(**url), "relay", "error")


def test_keys_that_let_nobody_in(look: Look, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    migrate(settings.database)
    assert "only local requests are accepted" in told(look(), "keys", "ok")
    with closing(Database(settings.database)) as database:
        asked = KeyRequest(owner="ann", scopes=["read", "admin"], expires_in_days=3)
        made = keys.create(database, Pepper(settings), asked)
        found = look()
        assert "1 of 1 are valid, 1 of them" in told(found, "keys", "ok")
        assert f"{made.prefix} of ann expires" in told(found, "keys", "warning")
        keys.revoke(database, made.prefix)
    assert "nobody has access" in told(look(), "keys", "error")


def test_the_command(tmp_path: Path) -> None:
    home = {"BDLAB_HOME": str(tmp_path), "BDLAB_DATA_DIR": str(tmp_path / "data")}
    done = bdlab("doctor", "--verify", "--json", **home)
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"]) == (0, True), found
    assert {"check", "state", "detail", "mend"} == set(found["checks"][0])
    assert next(c for c in found["checks"] if c["check"] == "torch")["state"] == "ok"
    assert found["checks"][-1] == {
        "check": "content",
        "state": "ok",
        "detail": "0 files, stages, uploads and datasets are intact",
        "mend": "",
    }
    broken = bdlab("doctor", BDLAB_MAX_ATTEMPTS="0", **home)
    assert (broken.returncode, broken.stderr) == (1, "")
    (line,) = broken.stdout.splitlines()
    assert line.startswith("ERROR    settings: BDLAB_MAX_ATTEMPTS='0' is not allowed. ")
    assert line.endswith("input should be greater than or equal to 1; unset it for its default")


def test_a_worker_with_other_code_is_found(tmp_path: Path, look: Look) -> None:
    settings = Settings(home=tmp_path / "home")
    migrate(settings.database)
    with closing(Database(settings.database)) as database, database.writing() as session:
        session.add(alive("cpu", version="0.0.9+1"))
    assert "h:1:cpu runs version 0.0.9+1, not" in told(look(), "workers", "warning")
