"""The broker that `bdlab up` runs comes back, whatever happens to its files: its messages are only hints."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from app.operations import embedded_broker, supervisor
from app.operations.child_process import Child
from app.operations.supervisor import ProcessTree
from app.settings import Settings
from tests.processes import wait_for


class Supervised:
    """The broker under the supervisor, without the other processes."""

    def __init__(self, home: Path) -> None:
        self.settings = Settings(home=home)
        self.folder = home / "valkey"
        self.tree = ProcessTree(self.settings, 0)
        assert self.tree.broker is not None
        self.broker: Child = self.tree.broker
        self.client = redis.Redis(unix_socket_path=str(self.settings.broker_socket))

    def is_ready(self) -> bool:
        """One round of the supervisor."""
        self.tree.look_after_children()
        return embedded_broker.is_ready(self.settings) and embedded_broker.is_intact(self.settings)

    def come_back(self) -> None:
        wait_for(self.is_ready, "the broker")


@pytest.fixture
def supervised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervised]:
    (tmp_path / "home").mkdir()
    monkeypatch.setattr(ProcessTree, "children", property(lambda tree: [tree.broker]))
    monkeypatch.setattr(supervisor, "BROKER_START_SECONDS", 0.5)
    running = Supervised(tmp_path / "home")
    running.come_back()
    yield running
    running.client.close()
    running.tree.stop()


def test_messages_survive_a_kill(supervised: Supervised) -> None:
    supervised.client.config_set("appendfsync", "always")
    supervised.client.lpush("cpu", "a message")
    supervised.broker.reap()
    supervised.come_back()
    assert supervised.client.llen("cpu") == 1


def test_a_damaged_file_is_put_aside(supervised: Supervised, capsys: pytest.CaptureFixture[str]) -> None:
    """As after a power cut."""
    for _ in range(2):
        supervised.client.lpush("cpu", "a message")
        supervised.broker.reap()
        [file] = supervised.folder.glob("appendonlydir/*.incr.aof")
        with file.open("ab") as appended:
            appended.write(bytes(4096))
        supervised.come_back()
        assert supervised.client.llen("cpu") == 0
        assert list((supervised.folder.parent / "valkey.damaged").glob("appendonlydir/*.incr.aof"))
    assert capsys.readouterr().out.count("could not read its files, which are now in") == 2


@pytest.mark.parametrize("removed", ["folder", "socket"])
def test_what_was_removed_comes_back(supervised: Supervised, removed: str) -> None:
    if removed == "folder":
        shutil.rmtree(supervised.folder)
    else:
        supervised.settings.broker_socket.unlink()
    supervised.come_back()
    assert supervised.client.lpush("cpu", "a message") == 1


def test_a_program_that_cannot_be_started_does_not_end_the_supervisor(
    supervised: Supervised, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, supervised.broker.command = supervised.broker.command, [str(tmp_path)]
    supervised.broker.reap()
    assert not supervised.is_ready()
    assert f"cannot be started: [Errno 13] Permission denied: '{tmp_path}'" in capsys.readouterr().out
    supervised.broker.command = command
    supervised.come_back()
    assert os.listdir(supervised.folder) == ["appendonlydir"]
