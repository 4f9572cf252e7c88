"""The typed client: against the live service, and against servers that misbehave."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bdlab import Client
from bdlab.errors import (
    ApiError,
    DamagedDownloadError,
    NotFoundError,
    UnreachableError,
    WaitTimeoutError,
)
from bdlab.types import Artifact
from tests.conftest import Stack
from tests.quick import QUICK

Answer = tuple[int, dict[str, str], bytes] | None
"""Status, headers and body; None breaks the connection off."""


@contextmanager
def server(answer: Callable[[str, str, dict[str, str]], Answer]) -> Iterator[str]:
    """A real HTTP server that answers with ``answer(method, path, headers)``; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            made = answer(self.command, self.path, dict(self.headers.items()))
            self.close_connection = True
            if made is None:
                return
            status, headers, body = made
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}"
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


def as_json(value: Any, status: int = 200) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


def test_submitting_again_after_faults_sends_the_same_key() -> None:
    keys: list[str] = []

    def answer(method: str, path: str, headers: dict[str, str]) -> Answer:
        keys.append(
            headers["idempotency-key"] if "idempotency-key" in headers else headers["Idempotency-Key"]
        )
        return (as_json({}, 503), None, as_json({"id": "7"}, 202))[len(keys) - 1]

    with server(answer) as url, Client(url) as client:
        assert client.submit({})["id"] == "7"
    assert len(keys) == 3
    assert len(set(keys)) == 1


def test_a_call_that_may_have_been_heard_is_not_repeated() -> None:
    calls: list[str] = []

    def answer(method: str, path: str, headers: dict[str, str]) -> Answer:
        calls.append(path)

    with server(answer) as url, Client(url) as client, pytest.raises(UnreachableError):
        client.cancel("7")
    assert calls == ["/v1/experiments/7:cancel"]


def test_patience_ends() -> None:
    with server(lambda *_: as_json({"title": "Service Unavailable"}, 503)) as url:
        start = time.monotonic()
        with Client(url, patience=0.5) as client, pytest.raises(ApiError, match="Unavailable") as caught:
            client.experiment("7")
        assert caught.value.status == 503
        assert time.monotonic() - start < 2
    with Client(url, patience=0.2) as client, pytest.raises(UnreachableError, match=url):
        client.experiment("7")
    with Client("nonsense", patience=0) as client, pytest.raises(UnreachableError):
        client.experiment("7")


def test_an_error_that_is_no_problem_document_is_still_an_error() -> None:
    with server(lambda *_: (502, {}, b"<html>Bad gateway")) as url, Client(url) as client:
        with pytest.raises(ApiError) as caught:
            client.experiment("7")
        assert caught.value.status == 502
        assert "502" in str(caught.value)


def test_a_damaged_download_leaves_nothing(tmp_path: Path) -> None:
    artifact: Artifact = {
        "id": "7",
        "name": "a.png",
        "kind": "figure",
        "media_type": "image/png",
        "size": 4,
        "sha256": hashlib.sha256(b"good").hexdigest(),
    }
    with server(lambda *_: (200, {}, b"evil")) as url, Client(url) as client:
        with pytest.raises(DamagedDownloadError, match=r"a\.png"):
            client.download(artifact, tmp_path / "figures" / "a.png")
        assert not list((tmp_path / "figures").iterdir())


def test_a_broken_stream_is_taken_up_where_it_broke() -> None:
    resumed_after: list[str] = []

    def answer(method: str, path: str, headers: dict[str, str]) -> Answer:
        if "text/event-stream" in headers.get("accept", headers.get("Accept", "")):
            last = headers.get("last-event-id", headers.get("Last-Event-ID", ""))
            resumed_after.append(last)
            number = int(last) + 1
            body = f'id: {number}\nevent: progress\ndata: {{"epoch": {number}}}\n\n: still here\n\n'
            return 200, {"Content-Type": "text/event-stream"}, body.encode()
        if "/events" in path:
            return as_json({"events": []})
        return as_json({"status": "running" if len(resumed_after) < 3 else "succeeded"})

    with server(answer) as url, Client(url) as client:
        epochs = [event["data"]["epoch"] for event in client.events("7")]
    assert epochs == [1, 2, 3]
    assert resumed_after == ["0", "1", "2"]


def test_without_server_sent_events_it_polls() -> None:
    def answer(method: str, path: str, headers: dict[str, str]) -> Answer:
        if "after=" not in path:
            return (
                as_json({"status": "succeeded"}) if "/events" not in path else (200, {}, b"what a proxy says")
            )
        events = [{"id": 1, "type": "state", "data": {"status": "succeeded"}}]
        return as_json({"events": events if path.endswith("after=0") else []})

    with server(answer) as url, Client(url) as client:
        assert [event["id"] for event in client.events("7")] == [1]


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[Client]:
    with Client(stack.url) as client:
        yield client


@pytest.fixture(scope="module")
def done(client: Client) -> str:
    """The id of a finished experiment."""
    seen: list[str] = []
    id = client.submit(QUICK)["id"]
    experiment = client.wait(id, timeout=120, on_progress=lambda e: seen.append(e["status"]))
    assert experiment["status"] == seen[-1] == "succeeded"
    return id


def test_everything_that_an_experiment_leaves(client: Client, done: str, tmp_path: Path) -> None:
    results = client.results(done)
    assert [arm["arm"] for arm in results["arms"]] == ["undefended", "abl"]
    assert results["arms"][0]["aggregate"]["clean_accuracy"]["n"] == 2
    rows = client.results_csv(done).splitlines()
    assert len(rows) == 1 + 2 * 2
    assert client.metrics(done, arm="undefended", seed=0)["series"]
    assert any("victim" in line["message"] for line in client.logs(done))
    assert len(client.logs(done, tail=2)) == 2
    figures = client.artifacts(done, kind="figure")
    assert figures
    path = client.download(figures[0], tmp_path / "deep" / "figure.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in path.parent.iterdir()] == ["figure.png"]


def test_events_end_with_the_experiment(client: Client, done: str) -> None:
    events = list(client.events(done))
    assert events[-1]["type"] == "state"
    assert events[-1]["data"]["status"] == "succeeded"
    assert [event["id"] for event in events] == sorted({event["id"] for event in events})
    assert list(client.events(done, after=events[-2]["id"])) == events[-1:]
    polled = client.events_after(done)
    assert [(e["id"], e["type"], e["data"]) for e in polled] == [
        (e["id"], e["type"], e["data"]) for e in events[: len(polled)]
    ]


def test_interactive_answers(client: Client, done: str) -> None:
    answer = client.predict(done, index=3, triggered=True)
    assert [arm["arm"] for arm in answer["arms"]] == ["undefended", "abl"]
    picture = client.preview({"name": "digits"}, {"name": "sig"})
    assert picture.startswith(b"\x89PNG")
    uploaded = client.predict(done, image=picture, seed=1)
    assert len(uploaded["arms"][0]["probabilities"]) == 10


def test_finding_checking_and_removing(client: Client, done: str) -> None:
    assert {attack["name"] for attack in client.catalog()["attacks"]} >= {"badnets", "blend", "sig"}
    checked = client.validate(QUICK)
    assert checked["spec_hash"] == client.experiment(done)["spec_hash"]
    second = client.submit({**QUICK, "name": "again"})["id"]
    found = [e["id"] for e in client.experiments(tag="study:quick", limit=1)]  # two pages
    assert found[:2] == [second, done]
    assert "spec" not in next(client.experiments())
    assert client.experiment(done) in client.experiments(tag="study:quick", fields="*")
    client.wait(second, timeout=60)
    client.delete(second)
    with pytest.raises(NotFoundError):
        client.experiment(second)


def test_cancel_and_retry(client: Client) -> None:
    id = client.submit({**QUICK, "training": {"epochs": 1000}, "seeds": [99]})["id"]
    with pytest.raises(WaitTimeoutError, match=id):
        client.wait(id, timeout=0.1)
    client.cancel(id)
    assert client.wait(id, timeout=30)["status"] == "canceled"
    assert client.retry(id)["status"] == "queued"
    client.cancel(id)
    client.wait(id, timeout=30)


def test_a_refused_spec_says_what_is_wrong(client: Client) -> None:
    with pytest.raises(ApiError, match=r"poisoning_rate.*1\.5") as caught:
        client.submit({"attack": {"name": "badnets", "poisoning_rate": 1.5}})
    assert caught.value.status == 422
    assert "poisoning_rate" in caught.value.errors[0]["field"]
    assert "\n" not in str(caught.value)
