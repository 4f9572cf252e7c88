"""What `bdlab up` and the other commands say when they cannot start: one line that names setting and value."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from app.core.database import Database
from app.settings import Settings
from bdlab.cli import main
from tests.databases import migrate

Refused = Callable[..., str]
NOWHERE = "127.0.0.1:9"


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Refused]:
    """The one line on standard error with which a command ends."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]

    def run(*words: str, **environment: str) -> str:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["bdlab", *words])
            with pytest.raises(SystemExit) as ended:
                main()
        assert ended.value.code not in (0, None)
        output = capsys.readouterr().err
        assert output.count("\n") == 1, output
        return output

    yield run
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


def refused_start(change: str = "", **environment: str) -> str:
    """The same for `bdlab up` after the statement ``change``, in a process of its own, since it forks."""
    code = f"import sys; from bdlab.cli import main; {change or 'pass'}; sys.argv[0] = 'bdlab'; main()"
    ended = subprocess.run(
        [sys.executable, "-c", code, "up", "--port=0"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode != 0
    assert ended.stderr.count("\n") == 1, ended.stderr
    return ended.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a database of the current schema."""
    home = tmp_path_factory.mktemp("home")
    migrate(Settings(home=home).database)
    return home


@pytest.mark.parametrize("words", [["up"], ["migrate"]])
@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("DATABASE_URL", "mysql://host/name", "begin with sqlite:/// or postgresql+psycopg://"),
        ("DATABASE_URL", "postgresql://host/name", "begin with sqlite:/// or postgresql+psycopg://"),
        ("BROKER_URL", "amqp://host", "begin with redis:// or rediss:// or redis+socket://"),
        ("OBJECTS_URL", "ftp://host/folder", "begin with s3:// or file:///"),
        ("OBJECTS_URL", "/a/folder", "begin with s3:// or file:///"),
        ("HEARTBEAT_SECONDS", "30", "more frequent than BDLAB_LEASE_SECONDS, which is 30"),
    ],
)
def test_a_setting_that_cannot_work(
    refused: Refused, words: list[str], name: str, value: str, why: str
) -> None:
    line = refused(*words, **{f"BDLAB_{name}": value})
    assert f"BDLAB_{name}={value!r} is not allowed" in line
    assert why in line


def test_a_lease_shorter_than_the_heartbeat(refused: Refused) -> None:
    line = refused("up", BDLAB_LEASE_SECONDS="3")
    assert "BDLAB_HEARTBEAT_SECONDS=5.0 is not allowed" in line
    assert "more frequent than BDLAB_LEASE_SECONDS, which is 3" in line


@pytest.mark.parametrize(
    "words",
    [["-m", "app.operations.relay"], ["-m", "worker"], ["-m", "app.operations.server"]],
    ids=lambda words: words[-1],
)
def test_a_part_that_is_started_alone(words: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, *words],
        env=os.environ | {"BDLAB_OBJECTS_URL": "ftp://host/folder"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    line = "BDLAB_OBJECTS_URL='ftp://host/folder' is not allowed: it must begin with s3:// or file:///\n"
    assert (ended.returncode, ended.stderr) == (1, line)


def test_a_password_is_not_shown(refused: Refused) -> None:
    line = refused("migrate", BDLAB_DATABASE_URL="mysql://me:secret@host/name")
    assert "mysql://me:***@host/name" in line


@pytest.mark.parametrize("words", [["up"], ["migrate"], ["keys", "list"], ["gc"]])
def test_a_database_of_a_newer_version(
    refused: Refused, tmp_path: Path, home: Path, words: list[str]
) -> None:
    (tmp_path / "bdlab.sqlite3").write_bytes((home / "bdlab.sqlite3").read_bytes())
    database = Database(Settings(home=tmp_path).database)
    with database.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    where = {"BDLAB_HOME": str(tmp_path)}
    line = refused_start(**where) if words == ["up"] else refused(*words, **where)
    assert str(tmp_path / "bdlab.sqlite3") in line
    assert "by a newer version, to revision 9999" in line


def test_back_ends_that_do_not_answer(home: Path) -> None:
    def up(change: str = "", **environment: str) -> str:
        return refused_start(change, BDLAB_HOME=str(home), **environment)

    began = time.monotonic()
    assert f"BDLAB_BROKER_URL=redis://:***@{NOWHERE}/0 cannot be used" in up(
        BDLAB_BROKER_URL=f"redis://:secret@{NOWHERE}/0"
    )
    s3 = {
        "AWS_ENDPOINT_URL": f"http://{NOWHERE}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
    }
    assert "BDLAB_OBJECTS_URL=s3://bucket/prefix cannot be used" in up(
        BDLAB_OBJECTS_URL="s3://bucket/prefix", **s3
    )
    database = f"postgresql+psycopg://me:secret@{NOWHERE}/name"
    assert f"the database postgresql+psycopg://me:***@{NOWHERE}/name cannot be opened" in up(
        BDLAB_DATABASE_URL=database
    )
    assert time.monotonic() - began < 30
    impatient = "from app.operations import preparation; preparation.PROBE_SECONDS = 0.3"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        assert f"BDLAB_BROKER_URL={url} cannot be used: it does not answer" in up(
            impatient, BDLAB_BROKER_URL=url
        )


def test_a_program_of_the_broker_that_is_missing_or_cannot_run(home: Path, tmp_path: Path) -> None:
    program = tmp_path / "valkey-server"
    change = (
        f"from app.operations import embedded_broker; embedded_broker.get_binary_path = lambda: '{program}'"
    )

    def up() -> str:
        return refused_start(change, BDLAB_HOME=str(home))

    assert up() == f"bdlab up: broker cannot be started: [Errno 2] No such file or directory: '{program}'\n"
    program.write_bytes(b"not a program")
    assert f"Permission denied: '{program}'" in up()
    program.chmod(0o700)
    assert f"Exec format error: '{program}'" in up()
    program.write_text("#!/bin/sh\necho a library is missing\nexit 1\n")
    assert "broker cannot start: a library is missing" in up()


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert f"'{tmp_path / 'file'}'" in refused_start(BDLAB_HOME=str(tmp_path / "file"))
