"""A real API on a real port, with a real broker, database and object store in a fresh folder."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import httpx2
import pytest
import uvicorn

from app.core.database import Database
from app.core.objects import Objects, put_content
from app.experiments import lifecycle
from app.main import create_app
from app.operations import relay
from app.settings import Settings
from tests.databases import migrate
from tests.processes import wait_for
from tests.servers import Valkey

QUICK = {"name": "quick", "training": {"epochs": 2}, "tags": {"study": "tests"}}


class Service:
    """A running API, and the doors behind it through which tests play the worker."""

    def __init__(self, settings: Settings, url: str) -> None:
        self.settings, self.url = settings, url
        self.http = httpx2.Client(base_url=url, timeout=30)
        self.database = Database(settings.database)
        self.objects = Objects(settings.objects)

    def submit(self, spec: dict[str, Any] | None = None, **headers: str) -> dict[str, Any]:
        answer = self.http.post("/v1/experiments", json=spec or QUICK, headers=headers)
        assert answer.status_code == 202, answer.text
        return answer.json()

    def get(self, experiment_id: str) -> dict[str, Any]:
        return self.http.get(f"/v1/experiments/{experiment_id}").json()

    def start(self, experiment_id: str, worker: str = "test", lease: float = 60.0) -> int:
        with self.database.writing() as session:
            attempt = lifecycle.claim(session, experiment_id, worker, lease)
        assert attempt is not None
        return attempt

    def end(
        self, experiment_id: str, outcome: lifecycle.Outcome = "succeeded", reason: str | None = None
    ) -> None:
        attempt = self.start(experiment_id)
        with self.database.writing() as session:
            assert lifecycle.finish(session, experiment_id, attempt, outcome, reason)

    def add(self, *rows: Any) -> None:
        with self.database.writing() as session:
            session.add_all(rows)

    def store(self, data: bytes) -> tuple[str, str]:
        return put_content(self.objects, data)

    def close(self) -> None:
        self.http.close()
        self.database.close()


@cache
def document() -> dict[str, Any]:
    """The OpenAPI document, which takes seconds to make. Do not change it."""
    return create_app(Settings()).openapi()


@contextmanager
def serve(settings: Settings, **options: Any) -> Iterator[Service]:
    """The API in a thread of this process, on a free port. ``options`` are uvicorn's."""
    migrate(settings.database)
    config = uvicorn.Config(create_app(settings), port=0, log_level="warning", proxy_headers=False, **options)
    server = uvicorn.Server(config)
    server.config.timeout_graceful_shutdown = 1
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started, "the API")
        port = server.servers[0].sockets[0].getsockname()[1]
        service = Service(settings, f"http://127.0.0.1:{port}")
        yield service
        service.close()
    finally:
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


@contextmanager
def relaying(settings: Settings) -> Iterator[None]:
    """The relay in a thread of this process."""
    stop = threading.Event()
    thread = threading.Thread(target=relay.run, args=(settings, stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    """A broker of its own for each test."""
    with Valkey() as server:
        yield server


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An API without a broker; experiments stay queued until a test takes them."""
    home = tmp_path_factory.mktemp("home")
    settings = Settings(
        home=home,
        data_dir=home / "data",
        interactive_timeout=0.5,
        max_body_bytes=20_000,
        max_image_bytes=100_000,
    )
    with serve(settings) as running:
        yield running


@pytest.fixture
def serving() -> Callable[[Settings], AbstractContextManager[Service]]:
    """Starts an API with settings of the test's own."""
    return serve
