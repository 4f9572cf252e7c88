"""The list of workers in the API, and workers that get messages of somebody else."""

import base64
import json
from typing import Any

import redis

from app.core.versions import code_version
from app.settings import Settings
from tests.conftest import Stack
from tests.service.specs import spec


def workers(stack: Stack) -> dict[str, Any]:
    """The only worker of each queue."""
    return {queue: worker for worker in stack.get("/v1/workers")["workers"] for queue in worker["queues"]}


def test_every_worker_is_listed_with_its_state(stack: Stack) -> None:
    by_queue = workers(stack)
    assert set(by_queue) == {"cpu", "interactive", "checks"}
    for worker in by_queue.values():
        assert worker["version"] == code_version()
        assert worker["memory"]["host_total"] > 0
        assert worker["seconds_since_sign"] < 20
    assert by_queue["cpu"]["name"].endswith(f":{stack.pid('worker')}:cpu")
    experiment_id = stack.submit(spec(seed=20, epochs=1000, images=400, defenses=[]))
    stack.eventually(
        lambda: workers(stack)["cpu"]["experiment_id"] == experiment_id, 30, "it was not started"
    )
    assert workers(stack)["cpu"]["state"] == "busy"
    stack.post(f"/v1/experiments/{experiment_id}:cancel")
    stack.wait(experiment_id, "canceled", timeout=60)
    assert workers(stack)["cpu"]["state"] == "idle"


def envelope(content: bytes, **changes: Any) -> bytes:
    """A message as Celery writes it."""
    properties = {"delivery_tag": "stray", "delivery_info": {}, "body_encoding": "base64"}
    message = {
        "body": base64.b64encode(content).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": "bdlab.check_upload", "id": "stray"},
        "properties": properties,
    }
    return json.dumps(message | changes).encode()


STRAY = [
    b"no json",
    b"\xff\xfe",
    b"5",
    b"null",
    b"{}",
    b"[" * 100_000,
    b'{"properties": {}}',
    envelope(b"no json"),
    envelope(b'{"a": 1}'),
    envelope(b"[]", body="no base64 %"),
    envelope(b"[]", properties={"delivery_tag": "stray", "delivery_info": None}),
    envelope(b"[[], {}, {}]", headers={"task": "no.such.task", "id": "stray"}),
]


def test_messages_that_are_none_do_not_end_a_worker(stack: Stack) -> None:
    names = {"worker": "cpu", "interactive": "interactive", "checks": "checks"}
    before = {name: stack.pid(name) for name in names}
    with redis.Redis(unix_socket_path=str(Settings(home=stack.home).broker_socket)) as broker:
        for queue in names.values():
            broker.lpush(queue, *STRAY)
        stack.eventually(lambda: not any(map(broker.llen, names.values())), 20, "the messages were not taken")
        assert {name: stack.pid(name) for name in names} == before
        assert broker.hget("unacked", "stray") is None  # it would come again
