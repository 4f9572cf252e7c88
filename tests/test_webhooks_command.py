"""`bdlab webhooks` on a real service."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.settings import Settings
from app.sweeps.completion import finish_sweeps
from app.webhooks.sender import Sender
from bdlab.cli import app
from tests.app.conftest import Service, serve
from tests.app.receiver import Authority, Receiver, receiving
from tests.processes import wait_for
from tests.test_cli import bdlab, fails


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    made = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.file))
    return made


@pytest.fixture
def receiver(authority: Authority) -> Iterator[Receiver]:
    with receiving(authority) as running:
        yield running


@pytest.fixture
def service(authority: Authority, tmp_path: Path) -> Iterator[Service]:
    settings = Settings(home=tmp_path / "home", webhook_private=True, webhook_timeout=1, relay_seconds=0.05)
    stop = threading.Event()
    thread = threading.Thread(target=Sender(settings, finish_sweeps).run, args=[stop])
    with serve(settings) as running:
        thread.start()
        yield running
        stop.set()
        thread.join()


def test_webhooks_are_made_tested_read_changed_and_deleted(
    service: Service,
    receiver: Receiver,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BDLAB_URL", service.url)

    def webhooks(*words: str) -> str:
        """What the command prints. In this process, since there are many."""
        app(["webhooks", *words], standalone_mode=False)
        return capsys.readouterr().out

    made = webhooks("create", receiver.url, "--name", "chat", "--event", "experiment.canceled")
    webhook_id, secret = made.split()
    assert secret.startswith("whsec_")
    assert webhooks("test", webhook_id).startswith("delivered: 200 (")
    service.http.post(f"/v1/experiments/{service.submit()['id']}:cancel").raise_for_status()
    wait_for(lambda: len(receiver.got) == 2, "the delivery")
    wait_for(lambda: "pending" not in webhooks("deliveries", webhook_id), "its note")
    newest, ping = json.loads(webhooks("deliveries", webhook_id, "--json"))
    assert [newest["type"], ping["type"]] == ["experiment.canceled", "webhook.ping"]
    webhooks("redeliver", webhook_id, newest["id"])
    wait_for(lambda: len(receiver.got) == 3, "the redelivery")
    assert receiver.got[2].headers["webhook-id"] == newest["id"]
    rotated = json.loads(webhooks("rotate", webhook_id, "--json"))
    assert rotated["secret"] not in (secret, None)
    assert "disabled by its owner" in webhooks("update", webhook_id, "--disable")
    listed = webhooks("list")
    assert "chat" in listed
    assert "disabled by its owner" in listed
    assert webhooks("update", webhook_id, "--enable", "--event", "sweep.finished").endswith(": good\n")
    assert '["sweep.finished"]' in webhooks("show", webhook_id)
    receiver.status = 500
    failed = bdlab("webhooks", "test", webhook_id)
    assert (failed.returncode, "was not delivered: answered 500" in failed.stderr) == (1, True)
    assert "https" in fails(2, "webhooks", "create", "http://example.org")
    webhooks("delete", webhook_id)
    fails(4, "webhooks", "show", webhook_id)
