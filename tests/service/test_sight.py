"""One submission as logs, traces and metrics show it, through a crash of the worker in the middle."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Stack
from tests.otlp import Collector, Span, collector
from tests.service.specs import spec

REQUEST = "seen-from-everywhere"
SECRET = 'a secret of the settings / with "signs"'


@pytest.fixture(scope="module")
def collected() -> Iterator[Collector]:
    with collector() as running:
        yield running


@pytest.fixture(scope="module")
def seen(new_stack: Callable[..., Stack], collected: Collector) -> Stack:
    """A service in which one experiment was submitted, lost its worker, and came to its end; and a preview made."""
    stack = new_stack(
        OTEL_EXPORTER_OTLP_ENDPOINT=collected.url, OTEL_BSP_SCHEDULE_DELAY="200", BDLAB_SECRET=SECRET
    )
    headers = {"X-Request-ID": REQUEST}
    answer = stack.client.post("/v1/experiments", json=spec(seed=11, epochs=12, images=600), headers=headers)
    assert answer.headers["X-Request-ID"] == REQUEST
    experiment = answer.json()["id"]
    stack.eventually(
        lambda: stack.experiment(experiment)["progress"].get("epoch"), 60, "no epoch was trained"
    )
    os.kill(stack.training_pid(), signal.SIGKILL)
    ended = stack.wait(experiment)
    assert [tried["outcome"] for tried in ended["attempts"]] == ["lost", "succeeded"]
    preview = {"dataset": {"name": "digits"}, "attack": {"name": "badnets"}}
    assert (
        stack.client.post("/v1/previews", json=preview, headers={"X-Request-ID": "look"}).status_code == 200
    )
    return stack


def lines(stack: Stack, name: str) -> list[dict[str, Any]]:
    """A process's log, every line of which must be JSON."""
    text = (stack.home / "logs" / f"{name}.log").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_every_process_tells_in_json_which_request_it_works_for(seen: Stack) -> None:
    for name in ("api", "relay", "worker"):
        found = [line for line in lines(seen, name) if line.get("request_id") == REQUEST]
        assert found, name
        assert {line["process"] for line in found} == {name}
        assert {line["owner_id"] for line in found} == {"local"}
        assert all(line["timestamp"] and line["level"] for line in found)
    told = {(line["message"], line["attempt"]) for line in lines(seen, "worker") if line.get("attempt")}
    assert {("attempt started", 1), ("attempt started", 2), ("attempt ended", 2)} <= told
    for name in ("interactive", "checks"):
        assert lines(seen, name)[-1]["process"] == name


def test_one_submission_is_one_trace_from_the_request_to_the_stages(
    seen: Stack, collected: Collector
) -> None:
    def root() -> Span | None:
        return next((s for s in collected.spans if s.attributes.get("bdlab.request_id") == REQUEST), None)

    request = seen.eventually(root, 20, "the API sent no span")
    trace = request.trace

    def whole() -> bool:
        return any(
            s.name == "attempt" and s.attributes.get("outcome") == "succeeded" for s in collected.of(trace)
        )

    seen.eventually(whole, 20, "the worker sent no span")
    spans = collected.of(trace)
    by_id = {span.id: span for span in spans}
    (api,) = [s for s in spans if s.service == "bdlab-api"]
    assert (api.name, api.parent, api.attributes["http.response.status_code"]) == (
        "POST /v1/experiments",
        "",
        202,
    )
    published = [s for s in spans if s.name == "publish experiment"]
    assert len(published) >= 2  # the second after the crash
    assert {s.parent for s in published} == {api.id}
    (attempt,) = [s for s in spans if s.name == "attempt"]  # the first one was killed before it could tell
    assert (attempt.parent, attempt.attributes["bdlab.attempt"]) == (api.id, 2)
    stages = [s for s in spans if s.name.startswith("stage ") and s.parent == attempt.id]
    assert {"stage poisoned_set", "stage victim"} <= {s.name for s in spans}
    assert any("epoch" in s.events for s in stages)
    assert {s.attributes["bdlab.arm"] for s in stages if s.name == "stage victim"} <= {"clean", "undefended"}
    assert {s.service for s in by_id.values()} == {"bdlab-api", "bdlab-relay", "bdlab-worker"}


def test_a_preview_is_one_trace_too(seen: Stack, collected: Collector) -> None:
    def asked() -> list[Span]:
        found = [s for s in collected.spans if s.attributes.get("bdlab.request_id") == "look"]
        return found if len(found) == 2 else []

    api, worker = sorted(seen.eventually(asked, 20, "no spans came"), key=lambda span: span.service)
    assert (worker.service, worker.name, worker.parent) == ("bdlab-interactive", "preview", api.id)


def test_the_api_tells_what_all_processes_counted(seen: Stack) -> None:
    def counted() -> dict[tuple[str, ...], float]:
        text = seen.client.get("/metrics").text
        return {
            (s.name, *sorted(v for k, v in s.labels.items() if k not in ("process", "device"))): s.value
            for family in text_string_to_metric_families(text)
            for s in family.samples
            if s.labels.get("process") in (None, "worker", "relay")
        }

    seen.eventually(lambda: ("bdlab_leases_lost_total",) in counted(), 20, "the relay did not tell")
    found = counted()
    assert found["bdlab_attempts_total", "succeeded"] == 1
    assert found["bdlab_experiments_ended_total", "succeeded"] == 1
    assert found["bdlab_epochs_total", "victim"] >= 12
    assert found["bdlab_stages_total", "computed", "victim"] >= 1
    assert found["bdlab_worker_busy_seconds_total", "cpu"] > 1
    assert found["bdlab_objects_seconds_count", "write"] > 0
    assert found["bdlab_experiments", "queued"] == 0
    assert found["bdlab_outbox_messages", "due"] == 0


def test_no_log_holds_a_secret(seen: Stack) -> None:
    key = "bdlab_abcdefgh_" + "x" * 43
    headers = {"Authorization": f"Bearer {key}"}
    assert seen.client.get("/v1/me", headers=headers).status_code == 200  # open: no key was made
    broken = httpx2.get(f"{seen.url}/v1/nowhere/{key}", headers=headers)
    assert broken.status_code == 404
    api = seen.home / "logs/api.log"  # a request is told after it is answered
    seen.eventually(lambda: "bdlab_abcdefgh_***" in api.read_text(), 10, "the request was not logged")
    for file in (seen.home / "logs").glob("*.log"):
        text = file.read_text()
        assert key not in text, file
        assert SECRET not in text, file
