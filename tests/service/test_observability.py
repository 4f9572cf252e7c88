"""Logs, traces and metrics of one experiment whose worker is killed."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Stack
from tests.otlp import Collector, Span, running_collector
from tests.service.specs import spec

REQUEST = "observed-request"
SECRET = 'a secret of the settings / with "signs"'


@pytest.fixture(scope="module")
def collected() -> Iterator[Collector]:
    with running_collector() as running:
        yield running


@pytest.fixture(scope="module")
def observed(new_stack: Callable[..., Stack], collected: Collector) -> Stack:
    """A service with a preview, and a finished experiment whose first worker was killed."""
    stack = new_stack(
        OTEL_EXPORTER_OTLP_ENDPOINT=collected.url, OTEL_BSP_SCHEDULE_DELAY="200", BDLAB_SECRET=SECRET
    )
    headers = {"X-Request-ID": REQUEST}
    answer = stack.client.post("/v1/experiments", json=spec(seed=11, epochs=12, images=300), headers=headers)
    assert answer.headers["X-Request-ID"] == REQUEST
    experiment = answer.json()["id"]
    stack.eventually(
        lambda: stack.experiment(experiment)["progress"].get("epoch"), 60, "no epoch was trained"
    )
    os.kill(stack.training_pid(), signal.SIGKILL)
    ended = stack.wait(experiment)
    assert [attempt["outcome"] for attempt in ended["attempts"]] == ["lost", "succeeded"]
    preview = {"dataset": {"name": "digits"}, "attack": {"name": "badnets"}}
    assert (
        stack.client.post("/v1/previews", json=preview, headers={"X-Request-ID": "look"}).status_code == 200
    )
    return stack


def lines(stack: Stack, name: str) -> list[dict[str, Any]]:
    """The log of a process, whose lines must all be JSON."""
    text = (stack.home / "logs" / f"{name}.log").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_json_logs_of_every_process_name_the_request(observed: Stack) -> None:
    for name in ("api", "relay", "worker"):
        of_request = [line for line in lines(observed, name) if line.get("request_id") == REQUEST]
        assert of_request, name
        assert {line["process"] for line in of_request} == {name}
        assert {line["owner_id"] for line in of_request} == {"local"}
        assert all(line["timestamp"] and line["level"] for line in of_request)
    messages = {
        (line["message"], line["attempt"]) for line in lines(observed, "worker") if line.get("attempt")
    }
    assert {("attempt started", 1), ("attempt started", 2), ("attempt ended", 2)} <= messages
    for name in ("interactive", "checks"):
        assert lines(observed, name)[-1]["process"] == name


def test_an_experiment_is_one_trace_from_the_request_to_the_stages(
    observed: Stack, collected: Collector
) -> None:
    def root() -> Span | None:
        return next((s for s in collected.spans if s.attributes.get("bdlab.request_id") == REQUEST), None)

    request = observed.eventually(root, 20, "the API sent no span")
    trace = request.trace

    def is_complete() -> bool:
        return any(
            s.name == "attempt" and s.attributes.get("outcome") == "succeeded"
            for s in collected.spans_of(trace)
        )

    observed.eventually(is_complete, 20, "the worker sent no span")
    spans = collected.spans_of(trace)
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
    (attempt,) = [s for s in spans if s.name == "attempt"]  # the first was killed before it sent its span
    assert (attempt.parent, attempt.attributes["bdlab.attempt"]) == (api.id, 2)
    stages = [s for s in spans if s.name.startswith("stage ") and s.parent == attempt.id]
    assert {"stage poisoned_set", "stage victim"} <= {s.name for s in spans}
    assert any("epoch" in s.events for s in stages)
    assert {s.attributes["bdlab.arm"] for s in stages if s.name == "stage victim"} <= {"clean", "undefended"}
    assert {s.service for s in by_id.values()} == {"bdlab-api", "bdlab-relay", "bdlab-worker"}


def test_a_preview_is_one_trace_too(observed: Stack, collected: Collector) -> None:
    def preview_spans() -> list[Span]:
        spans = [s for s in collected.spans if s.attributes.get("bdlab.request_id") == "look"]
        return spans if len(spans) == 2 else []

    api, worker = sorted(
        observed.eventually(preview_spans, 20, "no spans came"), key=lambda span: span.service
    )
    assert (worker.service, worker.name, worker.parent) == ("bdlab-interactive", "preview", api.id)


def test_the_api_exports_the_counters_of_all_processes(observed: Stack) -> None:
    def metrics() -> dict[tuple[str, ...], float]:
        text = observed.client.get("/metrics").text
        return {
            (s.name, *sorted(v for k, v in s.labels.items() if k not in ("process", "device"))): s.value
            for family in text_string_to_metric_families(text)
            for s in family.samples
            if s.labels.get("process") in (None, "worker", "relay")
        }

    observed.eventually(lambda: ("bdlab_leases_lost_total",) in metrics(), 20, "the relay pushed no counters")
    values = metrics()
    assert values["bdlab_attempts_total", "succeeded"] == 1
    assert values["bdlab_experiments_ended_total", "succeeded"] == 1
    assert values["bdlab_epochs_total", "victim"] >= 12
    assert values["bdlab_stages_total", "computed", "victim"] >= 1
    assert values["bdlab_worker_busy_seconds_total", "cpu"] > 1
    assert values["bdlab_objects_seconds_count", "write"] > 0
    assert values["bdlab_experiments", "queued"] == 0
    assert values["bdlab_outbox_messages", "due"] == 0


def test_no_log_contains_a_secret(observed: Stack) -> None:
    key = "bdlab_abcdefgh_" + "x" * 43
    headers = {"Authorization": f"Bearer {key}"}
    assert (
        observed.client.get("/v1/me", headers=headers).status_code == 200
    )  # authentication is off without keys
    broken = httpx2.get(f"{observed.url}/v1/nowhere/{key}", headers=headers)
    assert broken.status_code == 404
    api = observed.home / "logs/api.log"  # a request is logged after its response
    observed.eventually(lambda: "bdlab_abcdefgh_***" in api.read_text(), 10, "the request was not logged")
    for file in (observed.home / "logs").glob("*.log"):
        text = file.read_text()
        assert key not in text, file
        assert SECRET not in text, file
