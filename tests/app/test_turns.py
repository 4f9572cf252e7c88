"""Turns of owners: many expensive requests of one owner do not keep another waiting."""

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Self

import httpx2
import pytest
import redis
from PIL import Image

from app.core.broker import INTERACTIVE
from app.core.turns import Kind
from app.experiments import events
from app.sweeps import grid
from tests.app.people import People, people, submitted
from tests.processes import wait_for
from tests.servers import Valkey

PICTURE = base64.b64encode(b"a picture").decode()


@pytest.fixture(scope="module")
def broker() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


@pytest.fixture(scope="module")
def made(broker: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    with people(tmp_path_factory.mktemp("home"), broker_url=broker.url, interactive_timeout=3.0) as running:
        yield running


class Worker:
    """Answers previews one by one, as the interactive worker does; ``asked`` has their seeds."""

    def __init__(self, url: str) -> None:
        self.asked: list[int] = []
        self._broker = redis.Redis.from_url(url.replace("redis+socket", "unix"))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            message = self._broker.blpop([INTERACTIVE], timeout=0.1)
            if message is None:
                continue
            envelope = json.loads(message[1])
            ((payload,), _, _) = json.loads(base64.b64decode(envelope["body"]))
            self.asked.append(payload["seed"])
            time.sleep(0.02)
            answer = {"status": "SUCCESS", "result": {"picture": PICTURE}}
            self._broker.set(f"celery-task-meta-{envelope['headers']['id']}", json.dumps(answer))

    def waiting(self) -> int:
        """The number of questions that are in the broker."""
        return int(self._broker.llen(INTERACTIVE))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._broker.close()


def preview(client: httpx2.Client, seed: int) -> httpx2.Response:
    return client.post("/v1/previews", json={"seed": seed})


def is_too_many(answer: httpx2.Response, words: str) -> bool:
    if answer.status_code != 429:
        return False
    assert words in answer.json()["detail"]
    assert int(answer.headers["Retry-After"]) > 0
    return True


def test_many_questions_of_one_owner_do_not_delay_those_of_another(made: People, broker: Valkey) -> None:
    ann, bob = made.of("ann"), made.of("bob")
    with ThreadPoolExecutor(30) as pool:
        answers = [pool.submit(preview, ann, seed) for seed in range(29)]
        wait_for(lambda: sum(answer.done() for answer in answers) == 21, "the refusals")
        worker = Worker(broker.url)
        late = pool.submit(preview, bob, 1000)
        wait_for(lambda: worker.waiting() == 3, "two questions of the one and one of the other")
        with worker:
            assert late.result().content == b"a picture"
            assert worker.asked.index(1000) <= 2
            statuses = [answer.result().status_code for answer in answers]
            assert (statuses.count(200), statuses.count(429)) == (8, 21)
            refused = next(answer.result() for answer in answers if answer.result().status_code == 429)
            assert is_too_many(refused, "the limit is 8 previews and predictions in flight")
            assert preview(ann, 29).status_code == 200, "all turns are given back"


def test_a_question_that_nobody_answers_gives_its_turn_back(made: People, broker: Valkey) -> None:
    ann = made.of("ann")
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda seed: preview(ann, seed), range(6)))
    assert {answer.status_code for answer in answers} == {503}
    with Worker(broker.url):
        assert preview(ann, 7).status_code == 200


def test_a_picture_far_larger_than_any_input_of_a_network_is_refused_before_it_is_decoded(
    made: People,
) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (2049, 2048)).save(picture, "PNG")
    answer = made.of("ann").post(
        "/v1/experiments/x/predict", files={"image": ("large.png", picture.getvalue())}
    )
    assert (answer.status_code, "at most 4194304" in answer.json()["detail"]) == (413, True)


def test_event_streams_of_an_owner_are_limited(made: People, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "STREAMS", Kind("event streams", per_owner=3))
    ann, bob = made.of("ann"), made.of("bob")
    headers = {"Accept": "text/event-stream"}
    link = f"/v1/experiments/{submitted(ann)}/events"
    with ExitStack() as stack:
        streams = [stack.enter_context(ann.stream("GET", link, headers=headers)) for _ in range(3)]
        assert {stream.status_code for stream in streams} == {200}
        assert is_too_many(ann.get(link, headers=headers), "the limit is 3 event streams in flight")
        assert ann.get(link, params={"after": 0}).status_code == 200, "a page is no stream"
        other = f"/v1/experiments/{submitted(bob)}/events"
        with bob.stream("GET", other, headers=headers) as stream:
            assert stream.status_code == 200
    wait_for(lambda: open_stream(ann, link) == 200, "the end of the streams", 5)


def open_stream(client: httpx2.Client, link: str) -> int:
    with client.stream("GET", link, headers={"Accept": "text/event-stream"}) as stream:
        return stream.status_code


def test_sweeps_of_one_owner_do_not_occupy_all_threads(made: People, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of an owner is planned at a time, so there is always a thread for that of another."""
    plan, planned, together = grid.plan_experiment, list[Any](), threading.Event()

    def plan_slowly(*args: Any) -> Any:
        planned.append(args)
        together.wait(10)
        return plan(*args)

    monkeypatch.setattr(grid, "plan_experiment", plan_slowly)
    ann, bob = made.of("ann"), made.of("bob")

    def validate(client: httpx2.Client) -> httpx2.Response:
        return client.post("/v1/sweeps:validate", json={"grid": {"training.epochs": [2, 3]}})

    with ThreadPoolExecutor(50) as pool:
        answers = [pool.submit(validate, ann) for _ in range(48)]
        wait_for(lambda: sum(answer.done() for answer in answers) == 40, "the refusals")
        assert bob.get("/v1/experiments").status_code == 200
        assert len(planned) == 1
        late = pool.submit(validate, bob)
        wait_for(lambda: len(planned) == 2, "the other owner's turn")
        together.set()
        assert late.result().status_code == 200
        assert [answer.result().status_code for answer in answers].count(200) == 8
        assert all(is_too_many(a.result(), "plan a sweep") for a in answers if a.result().status_code != 200)
