"""The sender is the relay's process: killed between sending and noting it, it sends once more under the same id."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.operations.child_process import before_exec
from app.settings import Settings
from app.sweeps.completion import finish_sweeps
from tests.app.conftest import Service, serve
from tests.app.receiver import Authority, Got, receiving
from tests.processes import wait_for


@contextmanager
def relay(service: Service, authority: Authority) -> Iterator["subprocess.Popen[bytes]"]:
    """A real relay; its broker is away, which is no reason to send no webhooks."""
    environment = os.environ | {
        "BDLAB_HOME": str(service.settings.home_dir),
        "BDLAB_WEBHOOK_PRIVATE": "true",
        "BDLAB_WEBHOOK_TIMEOUT": "3",  # an attempt that fails for load is followed by a long pause
        "BDLAB_RELAY_SECONDS": "0.05",
        "SSL_CERT_FILE": str(authority.file),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "app.operations.relay"],
        env=environment,
        stderr=subprocess.DEVNULL,
        preexec_fn=before_exec(0, os.getpid()),  # noqa: PLW1509  # gone with pytest, even if that is killed
    )
    yield process
    process.terminate()
    assert process.wait(30) in (0, -signal.SIGKILL)


def test_killed_between_sending_and_noting_it(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with (
        serve(Settings(home=tmp_path / "home", webhook_private=True)) as service,
        receiving(authority) as receiver,
    ):
        body = {"url": receiver.url, "events": ["experiment.succeeded"]}
        webhook = service.http.post("/v1/webhooks", json=body).json()
        experiment = service.submit()["id"]
        with relay(service, authority) as first:

            def kill(_got: Got) -> None:
                os.kill(first.pid, signal.SIGKILL)
                first.wait()

            receiver.on_request = kill
            service.end(experiment)
            wait_for(lambda: receiver.got, "the first request")
            wait_for(lambda: first.poll() is not None, "the death of the relay")
        receiver.on_request = lambda _got: None
        path = f"/v1/webhooks/{webhook['id']}/deliveries"

        def log() -> Any:
            return service.http.get(path).json()["deliveries"][0]

        assert (log()["status"], log()["attempts"][0]["seconds"]) == ("pending", None)
        with relay(service, authority):
            wait_for(lambda: log()["status"] == "delivered", "the second attempt")
        assert len(receiver.got) == 2
        assert {got.headers["webhook-id"] for got in receiver.got} == {log()["id"]}
        assert receiver.got[0].body == receiver.got[1].body
        assert [attempt["status_code"] for attempt in log()["attempts"]] == [None, 200]


def test_a_refused_address_is_in_the_log_of_a_service_that_does_not_allow_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that leads to this machine is accepted, because nobody looks it up then, and refused when it is sent."""
    from app.webhooks import transport  # noqa: PLC0415
    from app.webhooks.sender import Sender  # noqa: PLC0415

    monkeypatch.setattr(transport, "resolve", lambda _host, _port, _timeout: ["127.0.0.1"])
    with serve(Settings(home=tmp_path)) as service:
        body = {"url": "https://inner.example/", "events": ["experiment.canceled"]}
        webhook = service.http.post("/v1/webhooks", json=body).json()
        service.http.post(f"/v1/experiments/{service.submit()['id']}:cancel").raise_for_status()
        sender = Sender(service.settings, finish_sweeps)
        sender.step()
        sender.close()
        (delivery,) = service.http.get(f"/v1/webhooks/{webhook['id']}/deliveries").json()["deliveries"]
        assert "inner.example is a loopback address" in delivery["attempts"][0]["error"]
        assert delivery["status"] == "pending"
