"""Requests made to harm the API: each is refused with the reason, quickly, and its process stays as large as it was."""

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.core import request_middleware
from app.operations import server
from app.operations.child_process import before_exec
from app.settings import Settings
from tests.app.conftest import Service, serve
from tests.app.people import People, people, stored, submitted
from tests.databases import migrate
from tests.processes import wait_for

MOST_BODY, MOST_UPLOAD = 2**20, 8 * 2**20
VALUES = 49_000  # just below what a body may hold
GROWTH = 160 * 2**20
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=b"}
PART = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n'
GRID = ",".join(str(i) for i in range(1, 101))


def listed(value: str, times: int) -> str:
    return "[" + ",".join([value] * times) + "]"


def pieces(head: bytes, size: int) -> Iterator[bytes]:
    """A body that does not say how long it is."""
    yield head
    for _ in range(size // 2**16):
        yield bytes(2**16)


CASES: dict[str, tuple[str, dict[str, str], Callable[[], Any], int, str]] = {
    "too large": ("experiments", JSON, lambda: b" " * (MOST_BODY + 1), 413, f"at most {MOST_BODY} bytes"),
    "endless": ("experiments", JSON, lambda: pieces(b"", 64 * 2**20), 413, f"at most {MOST_BODY} bytes"),
    "deep list": ("experiments", JSON, lambda: "[" * (MOST_BODY - 1), 400, "nested too deeply"),
    "deep object": ("experiments", JSON, lambda: '{"a":' * 200_000, 400, "nested too deeply"),
    "long number": ("experiments", JSON, lambda: '{"seeds":[' + "9" * 10**6 + "]}", 400, "too many digits"),
    "long name": ("experiments", JSON, lambda: '{"name":"' + "x" * 10**6 + '"}', 422, "at most 200"),
    "more values than any body has": (
        "experiments",
        JSON,
        lambda: '{"seeds":' + listed('"x"', 10**5) + "}",
        413,
        "has too many values; at most 50000",
    ),
    "as many faults as may be": (
        "experiments",
        JSON,
        lambda: '{"defenses":' + listed("{}", VALUES) + "}",
        422,
        "and 49 more",
    ),
    "as many cells as may be": (
        "sweeps",
        JSON,
        lambda: '{"base":{},"overrides":' + listed("{}", VALUES) + "}",
        422,
        "and 49 more",
    ),
    "10,000 cells": (
        "sweeps",
        JSON,
        lambda: '{"grid":{"training.epochs":[' + GRID + '],"attack.size":[' + GRID + "]}}",
        422,
        "at most 1000",
    ),
    "a grid of 10^60 cells": (
        "sweeps",
        JSON,
        lambda: '{"grid":{' + ",".join(f'"tags.{i}":[{GRID}]' for i in range(30)) + "}}",
        422,
        "at most 1000",
    ),
    "an endless file": (
        "models",
        FORM,
        lambda: pieces(PART % b"file", 64 * 2**20),
        413,
        f"at most {MOST_UPLOAD}",
    ),
    "endless metadata": ("datasets", FORM, lambda: pieces(PART % b"metadata", 2**20), 413, "at most 65536"),
    "endless headers of a part": (
        "datasets",
        FORM,
        lambda: pieces(b"--b\r\nX: ", 2**20),
        400,
        "not a multipart form",
    ),
}


class Api:
    """An API in a process of its own, whose memory can be looked at."""

    def __init__(self, process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
        self.pid = process.pid
        self.log = log
        self.http = httpx2.Client(base_url=url, timeout=60)

    def refused(self) -> int:
        """How many refusals the log tells of."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return sum(line.get("status", 0) >= 400 for line in lines)

    def peak(self) -> int:
        """The most memory that it ever had, in bytes."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    home = tmp_path_factory.mktemp("home")
    migrate(Settings(home=home).database)
    given = {
        "BDLAB_HOME": str(home),
        "BDLAB_MAX_BODY_BYTES": str(MOST_BODY),
        "BDLAB_MAX_UPLOAD_BYTES": str(MOST_UPLOAD),
        "BDLAB_LOG_FORMAT": "json",
    }
    log = home / "log"
    with socket.create_server(("127.0.0.1", 0)) as listener, log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "app.operations.server", "--fd", str(listener.fileno())],
            env=os.environ | given,
            pass_fds=[listener.fileno()],
            stderr=errors,
            preexec_fn=before_exec(0, os.getpid()),  # noqa: PLW1509  # gone with pytest, even if that is killed
        )
        made = Api(process, f"http://127.0.0.1:{listener.getsockname()[1]}", log)
        assert made.http.get("/healthz").status_code == 200
        yield made
        made.http.close()
        process.terminate()
        process.wait(10)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_each_is_refused_and_memory_stays_flat(api: Api) -> None:
    api.http.post("/v1/experiments:validate", json={"atack": 1})  # everything is imported now
    before = api.peak()
    for name, (path, headers, body, status, words) in CASES.items():
        answer = api.http.post(f"/v1/{path}", content=body(), headers=headers)
        assert (answer.status_code, name) == (status, name), answer.text
        assert words in answer.json()["detail"], name
        assert len(answer.content) < 20_000, name
        assert api.peak() - before < GROWTH, name
    wait_for(lambda: api.refused() == len(CASES) + 1, "the line of the last of them in the log", 10)
    assert api.http.get("/v1/experiments").json()["experiments"] == []
    assert api.http.get("/v1/sweeps").json()["sweeps"] == []


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def test_slow_senders_are_given_up_and_keep_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than the API has threads, each with one byte of its body every now and then."""
    monkeypatch.setattr(request_middleware, "MAX_BODY_SECONDS", 2.0)
    with serve(Settings(home=tmp_path)) as service, ExitStack() as stack:
        began = time.monotonic()
        slow = [stack.enter_context(connect(service.url)) for _ in range(100)]
        head = b"POST /v1/experiments HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
        for connection in slow:
            connection.sendall(head)
        answers = quick_while_dripping(service, slow, until=began + 1.0)
        assert time.monotonic() - began < 15
        assert all(answer.startswith(b"HTTP/1.1 408 ") for answer in answers)
        assert all(b"did not arrive within 2 s" in answer for answer in answers)
        assert service.http.get("/v1/experiments").json()["experiments"] == []


def quick_while_dripping(service: Service, slow: list[socket.socket], until: float) -> list[bytes]:
    """What each slow sender is answered; others are served all the time."""
    while time.monotonic() < until:
        for connection in slow:
            connection.sendall(b" ")
        assert service.http.get("/v1/experiments", timeout=5).status_code == 200
        time.sleep(0.1)
    found = []
    for connection in slow:
        answer = b""
        while piece := connection.recv(65536):  # to its end: the connection is closed
            answer += piece
        found.append(answer)
    return found


def answered(connection: socket.socket) -> tuple[int, bytes]:
    """Status and text of the answer, after which the connection must be closed."""
    answer = b""
    while piece := connection.recv(65536):
        answer += piece
    return int(answer.split()[1]), answer


def begin(service: Service, path: str, key: str = "", method: str = "POST") -> socket.socket:
    """Send a request without its body, which has 4 MiB."""
    connection = connect(service.url)
    sender = f"Authorization: Bearer {key}\r\n" if key else ""
    form = "Content-Type: multipart/form-data; boundary=b\r\n"
    connection.sendall(
        f"{method} {path} HTTP/1.1\r\nHost: x\r\n{sender}{form}Content-Length: {4 * 2**20}\r\n\r\n".encode()
    )
    return connection


PREDICT = "/v1/experiments/x/predict"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    with people(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.mark.parametrize("key", ["", "bdlab_abcdefgh_wrong"])
@pytest.mark.parametrize("path", [PREDICT, "/v1/sweeps", "/v1/models"])
def test_no_body_is_read_without_a_valid_key(made: People, path: str, key: str) -> None:
    began = time.monotonic()
    with begin(made.service, path, key) as connection:
        status, answer = answered(connection)  # although no byte of the body was sent
    assert time.monotonic() - began < request_middleware.MAX_BODY_SECONDS / 2
    assert status == 401
    assert b"connection: close" in answer.lower()
    assert b"application/problem+json" in answer


def test_a_public_route_answers_although_a_body_is_announced(made: People) -> None:
    """A file, which is streamed while the server looks out for the end of the connection."""
    artifact = stored(made.service, submitted(made.of("ann")), b"weights")
    link = made.of("ann").get(f"/v1/artifacts/{artifact}/link").json()["url"]
    path = f"/v1/downloads/{link.partition('/v1/downloads/')[2]}"
    with begin(made.service, path, method="GET") as connection:
        status, answer = answered(connection)
    assert (status, answer[-7:]) == (200, b"weights")
    assert made.service.http.get("/healthz").status_code == 200


def test_each_route_has_a_limit_of_its_own(made: People) -> None:
    root = made.of("root")
    for path, limit in (("/v1/keys", 2**16), ("/v1/webhooks", 2**16), ("/v1/sweeps", 2**20)):
        answer = root.post(path, content=b" " * (limit + 1), headers=JSON)
        assert (answer.status_code, f"at most {limit} bytes" in answer.json()["detail"]) == (413, True)


def test_large_bodies_of_one_owner_in_flight_are_limited(made: People) -> None:
    ann, bob = made.key("ann"), made.key("bob")
    with ExitStack() as stack:
        slow = [stack.enter_context(begin(made.service, PREDICT, ann)) for _ in range(5)]
        (fifth,), _, _ = select.select(slow, [], [], 10)
        status, answer = answered(fifth)
        assert status == 429
        assert b"bytes of requests in flight" in answer
        assert b"retry-after: 1" in answer.lower()
        assert made.client(ann).post("/v1/experiments", json={}).status_code == 202
        assert made.client(bob).post(PREDICT, files={"image": bytes(10**6)}).status_code == 422
    form = {"files": {"image": bytes(4 * 2**20)}}
    wait_for(lambda: made.client(ann).post(PREDICT, **form).status_code == 422, "room", 10)


def test_headers_that_drip_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a new connection, and on one that has had its answer."""
    monkeypatch.setattr(server, "HEADER_SECONDS", 1.0)
    with serve(Settings(home=tmp_path), http=server.TimedProtocol) as service, ExitStack() as stack:
        silent, dripping, second = (stack.enter_context(connect(service.url)) for _ in range(3))
        whole = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
        second.sendall(whole)
        assert is_served(second)
        began = time.monotonic()
        dripping.sendall(whole[:-2])
        drops = iter(whole)
        while time.monotonic() < began + 1.3:
            for connection, drop in ((dripping, b"X"), (second, bytes([next(drops)]))):
                with suppress(OSError):  # closed meanwhile
                    connection.sendall(drop)
            assert service.http.get("/healthz").status_code == 200
            time.sleep(0.1)
        for connection in (silent, dripping, second):
            with suppress(ConnectionResetError):
                assert connection.recv(65536) == b""
        assert time.monotonic() - began < 5
        slow = stack.enter_context(connect(service.url))
        for part in (whole[:10], whole[10:]):
            time.sleep(0.1)
            slow.sendall(part)
        assert is_served(slow)
        time.sleep(1.1)
        slow.sendall(whole)
        assert is_served(slow), "the pause between two requests has another limit"


@pytest.mark.parametrize("line", [b"", b"A: b\r\n"], ids=["one header", "many headers"])
def test_headers_without_end_are_refused(line: bytes, tmp_path: Path) -> None:
    """The first request of a connection, a later one, and one that is sent before the answer to another."""
    whole = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    endless = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + (line and b"x\r\n")
    with serve(Settings(home=tmp_path), http=server.TimedProtocol) as service:
        for before in (b"", whole, whole * 2):
            with connect(service.url) as connection:
                connection.sendall(before + endless)
                sent, answer = 0, b""
                with suppress(ConnectionResetError, BrokenPipeError):
                    while sent < 2**20 and b" 400 " not in answer:
                        sent += connection.send((line or b"x") * 4096)
                        if select.select([connection], [], [], 0.01)[0]:
                            answer += (piece := connection.recv(65536))
                            if not piece:
                                break
                # The answer is 400, which the end of the connection may overtake.
                assert sent < 2**20, "taken without end"
        fits = b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 5_000 + b"\r\n"
        with connect(service.url) as connection:
            connection.sendall(fits)
            assert is_served(connection)
        assert service.http.get("/healthz").status_code == 200


def is_served(connection: socket.socket) -> bool:
    answer = b""
    while not answer.endswith(b"}") and (piece := connection.recv(65536)):
        answer += piece
    return answer.startswith(b"HTTP/1.1 200")
