"""Workers as the service shows them."""

from typing import Any

from app.core.versions import code_version
from tests.conftest import Stack
from tests.service.specs import spec


def workers(stack: Stack) -> dict[str, Any]:
    """By queue, the one worker of it."""
    return {queue: worker for worker in stack.get("/v1/workers")["workers"] for queue in worker["queues"]}


def test_every_worker_is_listed_with_what_it_does(stack: Stack) -> None:
    found = workers(stack)
    assert set(found) == {"cpu", "interactive", "checks"}
    for worker in found.values():
        assert worker["version"] == code_version()
        assert worker["memory"]["host_total"] > 0
        assert worker["seconds_since_sign"] < 20
    assert found["cpu"]["name"].endswith(f":{stack.pid('worker')}:cpu")
    mine = stack.submit(spec(seed=20, epochs=1000, images=400, defenses=[]))
    stack.eventually(lambda: workers(stack)["cpu"]["experiment_id"] == mine, 30, "nobody ran it")
    assert workers(stack)["cpu"]["state"] == "busy"
    stack.post(f"/v1/experiments/{mine}:cancel")
    stack.wait(mine, "canceled", timeout=60)
    assert workers(stack)["cpu"]["state"] == "idle"
