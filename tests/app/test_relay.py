"""The relay against a real broker that comes and goes."""

import base64
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import select

from app.core.broker import INTERACTIVE, PREVIEW, Broker, BrokerError
from app.core.database import utcnow
from app.operations import relay
from app.settings import Settings
from app.specs.placement import CPU, GPU
from app.tables.experiments import Outbox, WorkerHeartbeat
from tests.app.conftest import Service, Valkey, relaying, wait_for

Serving = Callable[[Settings], AbstractContextManager[Service]]


@pytest.fixture
def service(serving: Serving, valkey: Valkey, tmp_path: Path) -> Iterator[Service]:
    settings = Settings(
        home=tmp_path,
        broker_url=valkey.url,
        relay_seconds=0.05,
        republish_seconds=0.5,
        interactive_timeout=0.5,
    )
    with serving(settings) as running:
        yield running


@pytest.fixture
def running(service: Service) -> Iterator[None]:
    with relaying(service.settings):
        yield


def sent(valkey: Valkey, queue: str = "cpu") -> list[Any]:
    """The arguments of the messages in the queue, the oldest first, as a worker would see them."""
    client = redis.Redis(unix_socket_path=str(valkey.socket))
    bodies = [json.loads(raw) for raw in reversed(client.lrange(queue, 0, -1))]
    return [json.loads(base64.b64decode(b["body"]))[0][0] for b in bodies]


def test_each_submission_is_sent_once(service: Service, valkey: Valkey, running: None) -> None:
    ids = [service.submit()["id"] for _ in range(3)]
    wait_for(lambda: len(sent(valkey)) >= 3, "the messages")
    threading.Event().wait(1.0)  # longer than republish_seconds: messages that wait are not sent again
    assert sent(valkey) == ids


def test_what_was_canceled_is_not_sent(service: Service, valkey: Valkey) -> None:
    gone, stays = service.submit(), service.submit()
    service.http.post(gone["links"]["cancel"])
    broker = Broker(valkey.url)
    relay.step(service.settings, service.database, broker)
    assert sent(valkey) == [stays["id"]]
    with service.database.reading() as session:
        assert session.scalars(select(Outbox).where(Outbox.published_at.is_(None))).all() == []
    broker.close()


def test_a_broker_that_was_down_gets_everything_later(
    service: Service, valkey: Valkey, running: None
) -> None:
    valkey.kill()
    experiment = service.submit()
    assert service.http.get("/readyz").json()["checks"]["broker"]["ok"] is False
    threading.Event().wait(0.5)
    valkey.start()
    wait_for(lambda: experiment["id"] in sent(valkey), "the message")


def test_a_message_that_the_broker_lost_is_sent_again(
    service: Service, valkey: Valkey, running: None
) -> None:
    experiment = service.submit()
    wait_for(lambda: sent(valkey) == [experiment["id"]], "the message")
    redis.Redis(unix_socket_path=str(valkey.socket)).flushall()
    wait_for(lambda: sent(valkey) == [experiment["id"]], "the second message")


def test_an_experiment_of_a_dead_worker_is_queued_again_and_sent(
    service: Service, valkey: Valkey, running: None
) -> None:
    experiment = service.submit()
    wait_for(lambda: sent(valkey), "the message")
    service.start(experiment["id"], worker="dead", lease=0.1)
    found = wait_for(
        lambda: (e := service.get(experiment["id"]))["status"] == "queued" and e, "the requeued experiment"
    )
    [attempt] = found["attempts"]
    assert (attempt["outcome"], attempt["reason"]) == ("lost", "no heartbeat from dead")
    assert found["attempts_left"] == service.settings.max_attempts - 1
    wait_for(lambda: len(sent(valkey)) == 2, "the second message")


def test_a_crash_between_sending_and_marking_sends_twice_and_no_more(
    service: Service, valkey: Valkey
) -> None:
    experiment = service.submit()
    broker = Broker(valkey.url)
    broker.send_experiment(experiment["id"], CPU)  # what the relay that crashed had done
    relay.step(service.settings, service.database, broker)
    relay.step(service.settings, service.database, broker)
    assert sent(valkey) == [experiment["id"]] * 2
    broker.close()


def test_other_code_on_a_worker_is_in_the_log(
    service: Service, valkey: Valkey, running: None, caplog: pytest.LogCaptureFixture
) -> None:
    now = utcnow()
    service.add(
        WorkerHeartbeat(name="h:1:cpu", queue=CPU, device="d", version="0.0.1+1", started_at=now, seen_at=now)
    )
    wait_for(lambda: "worker h:1:cpu runs version 0.0.1+1, not" in caplog.text, "the warning")
    threading.Event().wait(0.3)
    assert caplog.text.count("runs version") == 1


def test_what_waits_moves_to_the_queue_of_the_workers_that_are_there(
    service: Service, valkey: Valkey, running: None
) -> None:
    experiment = service.submit({"model": {"name": "resnet18"}})["id"]
    wait_for(lambda: sent(valkey, GPU) == [experiment], "the message")
    now = utcnow()
    service.add(WorkerHeartbeat(name="h:1:cpu", queue=CPU, device="d", started_at=now, seen_at=now))
    wait_for(lambda: sent(valkey, CPU) == [experiment], "the message for the worker that is there")
    # One with a GPU would get what comes now, while the one without takes what is light.
    service.add(WorkerHeartbeat(name="h:2:gpu", queue=GPU, device="d", started_at=now, seen_at=utcnow()))
    light, heavy = (
        service.submit()["id"],
        service.submit({"dataset": {"name": "digits"}, "device": "cuda"})["id"],
    )
    wait_for(lambda: light in sent(valkey, CPU) and heavy in sent(valkey, GPU), "the messages")
    assert heavy not in sent(valkey, CPU)
    assert light not in sent(valkey, GPU)


def test_a_delayed_message_waits(service: Service, valkey: Valkey) -> None:
    experiment = service.submit()
    with service.database.writing() as session:
        session.scalars(select(Outbox)).one().not_before = utcnow() + timedelta(seconds=1)
    broker = Broker(valkey.url)
    relay.step(service.settings, service.database, broker)
    assert sent(valkey) == []
    threading.Event().wait(1.1)
    relay.step(service.settings, service.database, broker)
    assert sent(valkey) == [experiment["id"]]
    broker.close()


def test_the_process_stops_when_it_is_told(service: Service, valkey: Valkey) -> None:
    environment = {"BDLAB_HOME": str(service.settings.home), "BDLAB_BROKER_URL": valkey.url}
    process = subprocess.Popen([sys.executable, "-m", "app.operations.relay"], env=environment)
    try:
        experiment = service.submit()
        wait_for(lambda: sent(valkey) == [experiment["id"]], "the message")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()


def test_a_preview_that_nobody_answers_is_a_503_and_expires(service: Service, valkey: Valkey) -> None:
    answer = service.http.post("/v1/previews", json={"attack": {"name": "blend"}})
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    [payload] = sent(valkey, INTERACTIVE)
    assert (payload["attack"]["name"], payload["dataset"]["name"], payload["seed"]) == ("blend", "digits", 0)
    client = redis.Redis(unix_socket_path=str(valkey.socket))
    assert json.loads(client.lindex(INTERACTIVE, 0))["headers"]["expires"]


def test_a_broker_that_is_not_there_is_said_at_once(service: Service, valkey: Valkey) -> None:
    valkey.kill()
    answer = service.http.post("/v1/previews", json={})
    assert (answer.status_code, "broker" in answer.json()["detail"]) == (503, True)
    with pytest.raises(BrokerError):
        Broker(valkey.url).ask(PREVIEW, {}, 1)
