"""Webhooks from end to end: a real API, a real sender, real receivers over TLS."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import func, select, update

from app.core.database import utcnow
from app.settings import Settings
from app.sweeps.completion import finish_sweeps
from app.tables.webhooks import Delivery, SweepEnding, Webhook
from app.webhooks import outbox, sender, signing
from app.webhooks.sender import Sender, backoff
from app.webhooks.transport import EXCERPT_BYTES
from tests.app.conftest import QUICK, Service, serve
from tests.app.people import people, submitted
from tests.app.receiver import Authority, Got, Receiver, drip, receiving
from tests.app.sending import sent_model, weights
from tests.processes import wait_for
from tests.servers import free_ports
from worker.checking import check

ROOT = Path(__file__).parents[2]
Make = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Service]:
    """An API with a sender beside it, which looks for work all the time."""
    settings = Settings(
        home=tmp_path_factory.mktemp("home"), webhook_private=True, webhook_timeout=1, relay_seconds=0.02
    )
    stop = threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(authority.file))
        patch.setattr(sender, "FIRST_PAUSE", 0.05)
        with serve(settings) as running:
            thread = threading.Thread(target=Sender(settings, finish_sweeps).run, args=[stop])
            thread.start()
            yield running
            stop.set()
            thread.join()


@pytest.fixture
def receiver(authority: Authority) -> Iterator[Receiver]:
    with receiving(authority) as running:
        yield running


@pytest.fixture
def make(service: Service) -> Iterator[Make]:
    """Makes webhooks, and deletes them after the test."""
    made: list[str] = []

    def create(url: str, **fields: Any) -> dict[str, Any]:
        answer = service.http.post("/v1/webhooks", json={"url": url, **fields})
        assert answer.status_code == 201, answer.text
        made.append(answer.json()["id"])
        return answer.json()

    yield create
    for webhook_id in made:
        service.http.delete(f"/v1/webhooks/{webhook_id}")


def log(service: Service, webhook: dict[str, Any], **query: Any) -> list[dict[str, Any]]:
    answer = service.http.get(f"/v1/webhooks/{webhook['id']}/deliveries", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()["deliveries"]


def ended(service: Service, webhook: dict[str, Any], count: int = 1) -> list[dict[str, Any]]:
    """The log once so many deliveries are tried no more."""

    def found() -> list[dict[str, Any]]:
        rows = log(service, webhook)
        return rows if len([row for row in rows if row["status"] != "pending"]) >= count else []

    return wait_for(found, f"{count} deliveries")


def types(receiver: Receiver) -> list[str]:
    return [json.loads(got.body)["type"] for got in receiver.got]


def signed(got: Got, secret: str) -> bool:
    """Whether the request carries a signature by this secret, checked as a receiver does."""
    h = got.headers
    expected = signing.sign(secret, h["webhook-id"], int(h["webhook-timestamp"]), got.body)
    return expected in h["webhook-signature"].split()


# What is sent


def test_an_experiment_from_start_to_end(service: Service, receiver: Receiver, make: Make) -> None:
    webhook = make(receiver.url, events=["experiment.started", "experiment.succeeded"])
    experiment = service.submit({**QUICK, "tags": {"study": "hooks"}})
    service.end(experiment["id"])
    wait_for(lambda: len(receiver.got) == 2, "both events")
    assert types(receiver) == ["experiment.started", "experiment.succeeded"]
    got = receiver.got[1]
    assert (got.path, got.headers["content-type"]) == ("/hook", "application/json")
    assert signed(got, webhook["secret"])
    assert abs(int(got.headers["webhook-timestamp"]) - time.time()) < 60
    data = json.loads(got.body)["data"]
    known = service.get(experiment["id"])
    assert data["finished_at"].replace("+00:00", "Z") == known["finished_at"]
    assert {name: data[name] for name in ("id", "name", "status", "attempt", "reason", "tags")} == {
        "id": experiment["id"],
        "name": "quick",
        "status": "succeeded",
        "attempt": 1,
        "reason": None,
        "tags": {"study": "hooks"},
    }
    assert service.http.get(data["links"]["results"]).status_code == 200
    last, first = ended(service, webhook, 2)
    assert last["id"] == got.headers["webhook-id"]
    assert (first["type"], first["status"], first["next_attempt_at"]) == (
        "experiment.started",
        "delivered",
        None,
    )
    (attempt,) = last["attempts"]
    assert (attempt["number"], attempt["status_code"], attempt["response"], attempt["error"]) == (
        1,
        200,
        "thanks",
        None,
    )
    detail = service.http.get(f"/v1/webhooks/{webhook['id']}/deliveries/{last['id']}").json()
    assert detail["payload"] == json.loads(got.body)
    assert service.http.get(f"/v1/webhooks/{webhook['id']}").json()["last_success_at"] is not None


def test_only_what_is_wanted_and_only_once(service: Service, receiver: Receiver, make: Make) -> None:
    make(receiver.url)  # everything but starts
    experiment = service.submit()
    service.end(experiment["id"], "failed", "it broke")
    service.http.post(f"/v1/experiments/{experiment['id']}:retry").raise_for_status()
    service.http.post(f"/v1/experiments/{experiment['id']}:cancel").raise_for_status()
    service.http.post(f"/v1/experiments/{experiment['id']}:cancel").raise_for_status()
    wait_for(lambda: len(receiver.got) == 2, "both ends")
    time.sleep(0.2)
    assert types(receiver) == ["experiment.failed", "experiment.canceled"]
    assert json.loads(receiver.got[0].body)["data"]["reason"] == "it broke"
    assert len({got.headers["webhook-id"] for got in receiver.got}) == 2


def test_a_start_is_told_once_however_often_the_experiment_waits(
    service: Service, receiver: Receiver, make: Make
) -> None:
    from app.experiments import lifecycle  # noqa: PLC0415

    make(receiver.url, events=["experiment.started"])
    experiment = service.submit()["id"]
    for _ in range(3):
        attempt = service.start(experiment)
        with service.database.writing() as session:
            lifecycle.wait(session, experiment, attempt, 0)
    time.sleep(0.2)
    assert types(receiver) == ["experiment.started"]


def test_an_event_is_written_with_the_change_or_not_at_all(service: Service, make: Make) -> None:
    from app.experiments import lifecycle  # noqa: PLC0415

    webhook = make("https://127.0.0.1:9/", events=["experiment.succeeded"])
    experiment = service.submit()["id"]
    attempt = service.start(experiment)

    def deliveries() -> int:
        with service.database.reading() as session:
            query = select(func.count()).select_from(Delivery).where(Delivery.webhook_id == webhook["id"])
            return session.scalar(query) or 0

    def finish_and_break() -> None:
        with service.database.writing() as session:
            lifecycle.finish(session, experiment, attempt, "succeeded")
            session.flush()
            raise RuntimeError("the process ends here")

    with pytest.raises(RuntimeError):
        finish_and_break()
    assert (service.get(experiment)["status"], deliveries()) == ("running", 0)
    with service.database.writing() as session:
        lifecycle.finish(session, experiment, attempt, "succeeded")
    assert deliveries() == 1


def test_a_sweep_tells_when_its_last_experiment_has_ended(
    service: Service, receiver: Receiver, make: Make
) -> None:
    make(receiver.url, events=["sweep.finished"])
    body = {"name": "three", "base": {}, "grid": {"training.epochs": [1, 2, 3]}}
    sweep = service.http.post("/v1/sweeps", json=body).json()
    listed = service.http.get(sweep["links"]["experiments"]).json()["experiments"]
    ids = [experiment["id"] for experiment in listed]
    service.end(ids[0])
    service.end(ids[1], "failed", "it broke")
    time.sleep(0.2)
    assert receiver.got == []
    service.http.delete(f"/v1/experiments/{ids[2]}").raise_for_status()  # nothing is left to wait for
    wait_for(lambda: receiver.got, "the end of the sweep")
    data = json.loads(receiver.got[0].body)["data"]
    assert (data["id"], data["name"], data["status"]) == (sweep["id"], "three", "failed")
    assert (data["experiments"]["succeeded"], data["experiments"]["failed"]) == (1, 1)
    service.http.post(f"/v1/sweeps/{sweep['id']}:retry").raise_for_status()
    service.end(ids[1])
    wait_for(lambda: len(receiver.got) == 2, "its second end")
    assert json.loads(receiver.got[1].body)["data"]["status"] == "succeeded"
    with service.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(SweepEnding)) == 0


def test_a_canceled_study_tells_once(service: Service, receiver: Receiver, make: Make) -> None:
    make(receiver.url, events=["study.finished"])
    body = {"attacks": [{"attack": {"name": "sig"}}, {"attack": {"name": "blend"}}], "seeds": [0, 1]}
    study = service.http.post("/v1/studies", json=body).json()
    service.http.post(f"/v1/studies/{study['id']}:cancel").raise_for_status()
    wait_for(lambda: receiver.got, "the end of the study")
    time.sleep(0.2)
    assert types(receiver) == ["study.finished"]
    assert json.loads(receiver.got[0].body)["data"]["status"] == "canceled"


def test_uploads_tell_what_their_check_found(service: Service, receiver: Receiver, make: Make) -> None:
    make(receiver.url, events=["model.ready", "model.refused"])
    good, bad = sent_model(service.http, weights(11)), sent_model(service.http, b"no model")
    assert (check(good, service.settings), check(bad, service.settings)) == ("ready", "refused")
    wait_for(lambda: len(receiver.got) == 2, "both checks")
    told = {json.loads(got.body)["data"]["id"]: json.loads(got.body) for got in receiver.got}
    assert (told[good]["type"], told[bad]["type"]) == ("model.ready", "model.refused")
    assert told[bad]["data"]["reason"] == service.http.get(f"/v1/models/{bad}").json()["reason"]


# When it does not arrive


def test_it_is_tried_again_under_the_same_id(service: Service, receiver: Receiver, make: Make) -> None:
    webhook = make(receiver.url, events=["experiment.succeeded"])
    receiver.status, receiver.answer = 503, b"\0busy\xff" + b"x" * 5000
    service.end(service.submit()["id"])
    wait_for(lambda: len(receiver.got) >= 2, "a second attempt")
    failing = service.http.get(f"/v1/webhooks/{webhook['id']}").json()
    assert failing["failing_since"] is not None
    receiver.status = 204
    receiver.answer = b""
    (delivery,) = ended(service, webhook)
    assert delivery["status"] == "delivered"
    codes = [attempt["status_code"] for attempt in delivery["attempts"]]
    assert (codes[0], codes[-1]) == (503, 204)
    assert delivery["attempts"][0]["response"].startswith("?busy\N{REPLACEMENT CHARACTER}xx")
    assert len(delivery["attempts"][0]["response"]) <= EXCERPT_BYTES
    assert {got.headers["webhook-id"] for got in receiver.got} == {delivery["id"]}
    assert all(signed(got, webhook["secret"]) for got in receiver.got)
    assert service.http.get(f"/v1/webhooks/{webhook['id']}").json()["failing_since"] is None


def test_pauses_grow_scatter_and_follow_the_receiver() -> None:
    pauses = [[backoff(attempt, None) for _ in range(50)] for attempt in range(1, 12)]
    for before, after in pairwise(pauses[:7]):
        assert max(before) < min(after) * 1.5
        assert max(before) > 1.2 * min(before)
    assert max(max(some) for some in pauses) <= 1.5 * sender.LONGEST_PAUSE
    assert backoff(1, 600) == 600
    assert backoff(1, 10**9) <= sender.LONGEST_RETRY_AFTER


@pytest.mark.parametrize("succeeded_meanwhile", [False, True])
def test_after_lasting_failure_a_webhook_is_disabled_and_says_so(
    service: Service,
    receiver: Receiver,
    make: Make,
    caplog: pytest.LogCaptureFixture,
    succeeded_meanwhile: bool,
) -> None:
    webhook = make(receiver.url, events=["experiment.succeeded"])
    receiver.status = 500
    receiver.headers = {"Retry-After": "3600"}  # so that nothing is tried again by itself
    service.end(service.submit()["id"])
    wait_for(lambda: receiver.got and log(service, webhook)[0]["attempts"][0]["status_code"], "an attempt")
    day_ago = utcnow() - timedelta(days=1)
    with service.database.writing() as session:
        other = outbox.delivery(webhook["id"], "experiment.succeeded", "{}")
        other.due_at = utcnow() + timedelta(hours=1)
        session.add(other)
        success = utcnow() - timedelta(hours=1) if succeeded_meanwhile else None
        session.execute(update(Webhook).where(Webhook.id == webhook["id"]).values(last_success_at=success))
        session.execute(
            update(Delivery)
            .where(Delivery.webhook_id == webhook["id"], Delivery.attempts == 1)
            .values(tried_since=day_ago, due_at=utcnow())
        )
    given_up = ended(service, webhook)[-1]
    assert (given_up["status"], given_up["reason"]) == ("failed", "given up after 2 attempts: answered 500")
    found = service.http.get(f"/v1/webhooks/{webhook['id']}").json()
    assert found["enabled"] is succeeded_meanwhile
    if succeeded_meanwhile:
        return
    reason = f"no delivery succeeded since {day_ago.isoformat(timespec='seconds')}: answered 500"
    assert found["disabled_reason"] == reason
    assert reason in caplog.text
    waiting, _ = log(service, webhook)
    assert (waiting["status"], waiting["reason"]) == ("failed", "the webhook was disabled")
    service.end(service.submit()["id"])
    assert len(log(service, webhook)) == 2  # nothing more is written for it
    path = f"/v1/webhooks/{webhook['id']}/deliveries/{given_up['id']}:redeliver"
    refused = service.http.post(path)
    assert (refused.status_code, "is disabled" in refused.json()["detail"]) == (409, True)
    receiver.status = 200
    changed = service.http.patch(f"/v1/webhooks/{webhook['id']}", json={"enabled": True}).json()
    assert (changed["enabled"], changed["failing_since"]) == (True, None)
    assert service.http.post(path).status_code == 202
    wait_for(lambda: log(service, webhook)[1]["status"] == "delivered", "the redelivery")
    assert {got.headers["webhook-id"] for got in receiver.got} == {given_up["id"]}


def test_a_receiver_that_is_gone_for_good_is_left_alone(
    service: Service, receiver: Receiver, make: Make
) -> None:
    webhook = make(receiver.url, events=["experiment.succeeded"])
    receiver.status = 410
    service.end(service.submit()["id"])
    (delivery,) = ended(service, webhook)
    assert (delivery["status"], len(delivery["attempts"])) == ("failed", 1)
    found = service.http.get(f"/v1/webhooks/{webhook['id']}").json()
    assert (found["enabled"], "410" in found["disabled_reason"]) == (False, True)


def test_a_slow_receiver_does_not_keep_others_waiting(
    service: Service, authority: Authority, receiver: Receiver, make: Make
) -> None:
    with receiving(authority) as slow:
        released: list[Got] = []
        seen: list[int] = []

        def hold(got: Got) -> None:
            drip(1.5)(got)
            released.append(got)

        slow.on_request = hold
        receiver.on_request = lambda _got: seen.append(len(released))
        for _ in range(sender.THREADS_PER_OWNER - 1):
            make(slow.url, events=["experiment.succeeded"])
        make(receiver.url, events=["experiment.succeeded"])
        service.end(service.submit()["id"])
        wait_for(lambda: seen, "the quick one")
        assert seen[0] == 0


def test_deliveries_are_forgotten_after_a_month(service: Service, receiver: Receiver, make: Make) -> None:
    from app.webhooks import repository  # noqa: PLC0415

    webhook = make(receiver.url, events=["experiment.succeeded"])
    for _ in range(2):
        service.end(service.submit()["id"])
    old, _ = ended(service, webhook, 2)
    with service.database.writing() as session:
        month_ago = utcnow() - sender.RETENTION - timedelta(minutes=1)
        session.execute(update(Delivery).where(Delivery.id == old["id"]).values(ended_at=month_ago))
        repository.delete_old_deliveries(session, sender.RETENTION)
    assert old["id"] not in [row["id"] for row in log(service, webhook)]
    assert len(log(service, webhook)) == 1


# Test, secrets, changes


def test_a_ping_answers_with_what_came_of_it(service: Service, receiver: Receiver, make: Make) -> None:
    webhook = make(receiver.url, events=["sweep.finished"])
    path = f"/v1/webhooks/{webhook['id']}:test"
    answer = service.http.post(path)
    assert answer.status_code == 200
    ping = answer.json()
    assert (ping["status"], ping["type"], ping["attempts"][0]["response"]) == (
        "delivered",
        "webhook.ping",
        "thanks",
    )
    assert ping["payload"]["data"] == {"webhook_id": webhook["id"]}
    assert signed(receiver.got[0], webhook["secret"])
    receiver.status = 418
    failed = service.http.post(path).json()
    assert (failed["status"], failed["reason"], len(failed["attempts"])) == ("failed", "answered 418", 1)
    receiver.on_request = drip(1.5)
    assert service.http.post(path).json()["reason"] == "no answer within 1 s"
    service.http.patch(f"/v1/webhooks/{webhook['id']}", json={"enabled": False})
    receiver.status, receiver.on_request = 200, lambda _got: None
    assert service.http.post(path).json()["status"] == "delivered"


def test_without_a_relay_a_ping_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.webhooks import service as webhooks  # noqa: PLC0415

    monkeypatch.setattr(webhooks, "TEST_SLACK_SECONDS", 0.0)
    with serve(Settings(home=tmp_path, webhook_timeout=0.1, relay_seconds=0.1)) as alone:
        webhook = alone.http.post("/v1/webhooks", json={"url": "https://example.org"}).json()
        answer = alone.http.post(f"/v1/webhooks/{webhook['id']}:test")
        assert (answer.status_code, "the relay" in answer.json()["detail"]) == (503, True)
        assert log(alone, webhook)[0]["reason"] == "not sent in time"


def test_a_secret_is_shown_once_and_not_stored(service: Service, receiver: Receiver, make: Make) -> None:
    webhook = make(receiver.url)
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=", webhook["secret"])
    shown = service.http.get(f"/v1/webhooks/{webhook['id']}").text + service.http.get("/v1/webhooks").text
    assert webhook["secret"] not in shown
    with service.database.reading() as session:
        row = session.get_one(Webhook, webhook["id"])
    assert webhook["secret"].removeprefix("whsec_") not in str(vars(row))


def test_both_secrets_sign_for_a_day_after_a_rotation(
    service: Service, receiver: Receiver, make: Make
) -> None:
    webhook = make(receiver.url)
    path = f"/v1/webhooks/{webhook['id']}"
    rotated = service.http.post(f"{path}:rotate").json()
    assert rotated["secret"] != webhook["secret"]
    assert rotated["previous_secret_until"] is not None
    service.http.post(f"{path}:test")
    assert signed(receiver.got[-1], webhook["secret"])
    assert signed(receiver.got[-1], rotated["secret"])
    with service.database.writing() as session:
        session.execute(update(Webhook).values(previous_until=utcnow() - timedelta(seconds=1)))
    service.http.post(f"{path}:test")
    assert not signed(receiver.got[-1], webhook["secret"])
    assert signed(receiver.got[-1], rotated["secret"])
    for _ in range(2):
        last = service.http.post(f"{path}:rotate").json()
    service.http.post(f"{path}:test")
    assert not signed(receiver.got[-1], rotated["secret"])  # a leaked one can be made useless at once
    assert signed(receiver.got[-1], last["secret"])


def test_another_secret_of_the_service_is_noticed(service: Service, receiver: Receiver, make: Make) -> None:
    webhook = make(receiver.url)
    with service.database.writing() as session:
        session.execute(update(Webhook).where(Webhook.id == webhook["id"]).values(digest="0" * 64))
    failed = service.http.post(f"/v1/webhooks/{webhook['id']}:test").json()
    assert "the service's secret has changed" in failed["reason"]
    assert receiver.got == []
    rotated = service.http.post(f"/v1/webhooks/{webhook['id']}:rotate").json()
    assert rotated["previous_secret_until"] is None
    assert service.http.post(f"/v1/webhooks/{webhook['id']}:test").json()["status"] == "delivered"


def test_signatures_are_those_of_the_convention() -> None:
    """The example that the convention's own libraries are tested with."""
    signature = signing.sign(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_receiver_of_the_documentation_verifies(tmp_path: Path) -> None:
    text = (ROOT / "docs/webhooks.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "verify" in block]
    secret = signing.Keys(Settings(home=tmp_path)).new().secret
    (port,) = free_ports(1)
    environment = os.environ | {"WEBHOOK_SECRET": secret, "PORT": str(port)}
    body = outbox.message("experiment.failed", {"id": "7"}).encode()

    def send(*secrets: str, when: float = 0, **changes: str) -> int:
        headers = signing.headers(list(secrets), "one", int(time.time() + when), body) | changes
        return httpx2.post(f"http://127.0.0.1:{port}/", content=body, headers=headers).status_code

    def listening() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as run:
        try:
            wait_for(listening, "the receiver")
            other = signing.Keys(Settings(home=tmp_path)).new().secret
            assert [send(secret), send(secret), send(other, secret)] == [204] * 3
            refused = [send(other), send(secret, when=-600), send(secret, **{"webhook-id": "two"})]
            assert refused == [400] * 3
            assert httpx2.post(f"http://127.0.0.1:{port}/", content=body).status_code == 400
        finally:
            run.terminate()
        assert run.stdout is not None
        assert run.stdout.read() == b"experiment.failed 7\n"


def test_a_webhook_is_changed_listed_and_deleted(service: Service, receiver: Receiver, make: Make) -> None:
    made = [make(f"https://example.org/{number}", name=str(number)) for number in range(3)]
    found, link = [], "/v1/webhooks?limit=2"
    while link is not None:
        page = service.http.get(link).json()
        found += page["webhooks"]
        link = page["next"]
    assert [w["id"] for w in found] == [w["id"] for w in reversed(made)]
    path = f"/v1/webhooks/{made[0]['id']}"
    body = {"url": receiver.url, "name": "new", "events": ["study.finished", "dataset.ready"]}
    changed = service.http.patch(path, json=body).json()
    assert {name: changed[name] for name in body} == {**body, "events": sorted(body["events"])}
    assert service.http.patch(path, json={"name": "newer"}).json()["url"] == receiver.url
    off = service.http.patch(path, json={"enabled": False}).json()
    assert (off["enabled"], off["disabled_reason"]) == (False, "disabled by its owner")
    assert service.http.delete(path).status_code == 204
    assert service.http.get(path).status_code == 404
    for missing in ("", ":test", ":rotate"):
        assert service.http.post(f"{path}{missing}").status_code in (404, 405)
    assert service.http.get(f"{path}/deliveries").status_code == 404


def test_deliveries_come_in_pages_and_by_state(service: Service, receiver: Receiver, make: Make) -> None:
    webhook = make(receiver.url, events=["experiment.canceled"])
    for _ in range(3):
        service.http.post(f"/v1/experiments/{service.submit()['id']}:cancel")
    everything = ended(service, webhook, 3)
    first = service.http.get(f"/v1/webhooks/{webhook['id']}/deliveries?limit=2&status=delivered").json()
    second = service.http.get(first["next"]).json()
    assert first["deliveries"] + second["deliveries"] == everything
    assert log(service, webhook, status="failed") == []
    other = make("https://example.org")
    path = f"/v1/webhooks/{other['id']}/deliveries/{everything[0]['id']}"
    assert service.http.get(path).status_code == 404
    assert service.http.post(f"{path}:redeliver").status_code == 404


def test_the_examples_of_the_documentation_work(service: Service, make: Make) -> None:
    paths = service.http.get("/openapi.json").json()["paths"]

    def examples(path: str, method: str) -> list[Any]:
        content = paths[path][method]["requestBody"]["content"]["application/json"]
        return [example["value"] for example in content["examples"].values()]

    made = [make(body.pop("url"), **body) for body in examples("/v1/webhooks", "post")]
    for body in examples("/v1/webhooks/{webhook_id}", "patch"):
        assert service.http.patch(f"/v1/webhooks/{made[0]['id']}", json=body).status_code == 200


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({}, "url", "required"),
        ({"url": "http://example.org"}, "url", "https"),
        ({"url": "ftp://example.org"}, "url", "https"),
        ({"url": "https://"}, "url", "https"),
        ({"url": "https://exa mple.org"}, "url", "https"),
        ({"url": "https://example.org:99999"}, "url", "https"),
        ({"url": "https://user:word@example.org"}, "url", "without user"),
        ({"url": "https://example.org/#part"}, "url", "fragment"),
        ({"url": "https://example.org/" + "x" * 2000}, "url", "2000"),
        ({"url": "https://example.org", "events": []}, "events", "at least 1"),
        ({"url": "https://example.org", "events": ["experiment.ended"]}, "events[0]", "experiment.failed"),
        ({"url": "https://example.org", "name": "a\0b"}, "name", "pattern"),
        ({"url": "https://example.org/\0"}, "url", "non-printable"),
        ({"url": "https://a..b:/"}, "url", "https"),
        ({"url": "https://example.org", "evnts": []}, "evnts", "unknown field"),
        ({"url": "https://169.254.169.254/latest/"}, "url", "metadata"),
    ],
)
def test_a_wrong_request_names_the_field(
    service: Service, body: dict[str, Any], field: str, words: str
) -> None:
    answer = service.http.post("/v1/webhooks", json=body)
    assert answer.status_code == 422
    error = answer.json()["errors"][0]
    assert error["field"] == field
    assert words in error["message"]


def test_owners_have_webhooks_of_their_own_and_not_too_many(
    tmp_path: Path, receiver: Receiver, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    with people(tmp_path, quota_webhooks=2, webhook_private=True) as made:
        ann, bob = made.of("ann"), made.of("bob")
        for client in (ann, ann, bob):
            assert client.post("/v1/webhooks", json={"url": receiver.url}).status_code == 201
        refused = ann.post("/v1/webhooks", json={"url": receiver.url})
        assert (refused.status_code, refused.json()["detail"]) == (429, "the limit is 2 webhooks; 2 are used")
        assert int(refused.headers["Retry-After"]) > 0
        assert bob.get("/v1/me").json()["quotas"]["webhooks"] == {"used": 1.0, "limit": 2}
        limits = {"webhooks": 3}
        assert made.of("root").put("/v1/owners/ann/limits", json=limits).json()["limits"]["webhooks"] == 3
        assert made.of("ann").post("/v1/webhooks", json={"url": receiver.url}).status_code == 201
        bob.post(f"/v1/experiments/{submitted(bob)}:cancel").raise_for_status()
        sending = Sender(made.service.settings, finish_sweeps)
        sending.step()
        sending.close()
        assert len(receiver.got) == 1
