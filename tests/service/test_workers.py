"""The list of workers in the API."""

from typing import Any

from app.core.versions import code_version
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
