"""Following an experiment: the stream, the same as JSON, the log."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from app.core.database import utcnow
from app.experiments import events, lifecycle
from app.tables.experiments import LogLine
from tests.app.conftest import Service

STREAM = {"Accept": "text/event-stream"}


def parse(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Server-sent events, field by field; a comment comes as {"comment": ...}."""
    event: dict[str, Any] = {}
    for line in lines:
        if not line:
            if event:
                yield event
            event = {}
        elif line.startswith(":"):
            event["comment"] = line[1:].strip()
        else:
            name, _, value = line.partition(": ")
            event[name] = json.loads(value) if name == "data" else value


def follow(service: Service, link: str, **headers: str) -> list[dict[str, Any]]:
    with service.http.stream("GET", link, headers={**STREAM, **headers}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        return [e for e in parse(answer.iter_lines()) if "event" in e]


def test_the_stream_tells_all_and_ends(service: Service) -> None:
    experiment = service.submit()
    link = experiment["links"]["events"]
    seen: list[dict[str, Any]] = []
    reader = threading.Thread(target=lambda: seen.extend(follow(service, link)))
    reader.start()
    attempt = service.start(experiment["id"])
    with service.database.writing() as session:
        lifecycle.emit(session, experiment["id"], "progress", {"stage": "victim", "fraction": 0.5})
    time.sleep(0.7)
    with service.database.writing() as session:
        lifecycle.finish(session, experiment["id"], attempt, "succeeded")
    reader.join(10)
    assert not reader.is_alive()
    assert [(e["event"], e["data"].get("status")) for e in seen] == [
        ("state", "queued"),
        ("state", "running"),
        ("progress", None),
        ("state", "succeeded"),
    ]
    assert seen[2]["data"]["stage"] == "victim"
    rest = follow(service, link, **{"Last-Event-ID": seen[1]["id"]})
    assert rest == seen[2:]
    done = service.http.get(link, headers={**STREAM, "Last-Event-ID": seen[-1]["id"]})
    assert done.status_code == 204  # what makes a browser stop asking


def test_a_retried_experiment_is_followed_to_its_second_end(service: Service) -> None:
    experiment = service.submit()
    service.end(experiment["id"], "failed", "bad luck")
    service.http.post(experiment["links"]["retry"])
    seen: list[dict[str, Any]] = []
    reader = threading.Thread(target=lambda: seen.extend(follow(service, experiment["links"]["events"])))
    reader.start()
    time.sleep(0.7)
    assert reader.is_alive()
    service.end(experiment["id"])
    reader.join(10)
    assert [e["data"]["status"] for e in seen][-1] == "succeeded"


def test_a_silent_stream_stays_alive_and_ends_with_its_experiment(service: Service) -> None:
    experiment = service.submit()
    with service.http.stream("GET", experiment["links"]["events"], headers=STREAM) as answer:
        found = parse(answer.iter_lines())
        began = time.monotonic()
        assert next(e for e in found if "comment" in e) == {"comment": "still here"}
        assert time.monotonic() - began < events.HEARTBEAT_SECONDS + 3
        service.http.delete(experiment["links"]["self"])
        assert list(found) == []


def test_many_streams_hold_no_thread_and_no_connection(service: Service) -> None:
    """More streams than there are threads or database connections, and polls still come through."""
    experiment = service.submit()
    clients = [httpx2.Client(base_url=service.url, timeout=30) for _ in range(60)]
    try:
        streams = [c.stream("GET", experiment["links"]["events"], headers=STREAM) for c in clients]
        for stream in streams:
            stream.__enter__()
        began = time.monotonic()
        assert service.get(experiment["id"])["status"] == "queued"
        assert time.monotonic() - began < 5
        service.http.delete(experiment["links"]["self"])
        for stream in streams:
            stream.__exit__(None, None, None)
    finally:
        for client in clients:
            client.close()


def test_pollers_read_the_same_in_pages(service: Service) -> None:
    experiment = service.submit()
    service.end(experiment["id"])
    link = experiment["links"]["events"]
    first = service.http.get(link, params={"after": 0, "limit": 2}).json()
    assert [e["data"]["status"] for e in first["events"]] == ["queued", "running"]
    assert first["finished"] is False
    second = service.http.get(link, params={"after": first["after"]}).json()
    assert [e["data"]["status"] for e in second["events"]] == ["succeeded"]
    assert second["finished"] is True
    assert second["events"][0]["type"] == "state"
    nothing = service.http.get(link, params={"after": second["after"]}).json()
    assert (nothing["events"], nothing["after"]) == ([], second["after"])
    whole = service.http.get(link, headers={"Accept": "application/json"}).json()
    assert whole["events"] == first["events"] + second["events"]


@pytest.mark.parametrize("bad", ["x", "-1", "1.5", "9" * 30])
def test_a_wrong_last_event_id_is_refused(service: Service, bad: str) -> None:
    link = service.submit()["links"]["events"]
    answer = service.http.get(link, headers={**STREAM, "Last-Event-ID": bad})
    assert (answer.status_code, "Last-Event-ID" in answer.json()["detail"]) == (400, True)
    assert service.http.get(link, params={"after": -1}).status_code == 422


def test_the_log_has_a_tail_and_an_offset(service: Service) -> None:
    experiment = service.submit()
    service.add(
        *(
            LogLine(experiment_id=experiment["id"], attempt=1, at=utcnow(), message=f"line {i}")
            for i in range(10)
        )
    )

    def read(**parameters: int) -> list[str]:
        answer = service.http.get(experiment["links"]["logs"], params=parameters)
        return [json.loads(line)["message"] for line in answer.text.splitlines()]

    assert read() == [f"line {i}" for i in range(10)]
    assert read(tail=2) == ["line 8", "line 9"]
    assert read(offset=8) == ["line 8", "line 9"]
    assert read(offset=2, limit=3) == ["line 2", "line 3", "line 4"]
    assert read(tail=100, offset=9) == ["line 9"]
    assert read(offset=50) == []
    text = service.http.get(experiment["links"]["logs"], params={"tail": 1}, headers={"Accept": "text/plain"})
    assert text.text.endswith("[1] line 9\n")
    assert text.headers["X-Next-Offset"] == "10"
