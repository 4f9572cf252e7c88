"""Every route, also those that are still to come: without a key, with a wrong scope, with another owner's key."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import httpx2
import pytest
from fastapi.routing import APIRoute, iter_route_contexts

from app.core.security import ADMIN, scope_of
from app.main import create_app
from app.settings import Settings
from app.webhooks import outbox
from tests.app.conftest import document
from tests.app.people import ALL, People, people, stored, submitted
from tests.app.sending import sent_dataset, sent_model

PUBLIC = {"/healthz", "/readyz", "/metrics", "/docs", "/logout", "/v1/downloads/{token}"}
"""Routes for everybody. A route gets here by ``@public``, and only if it shows nothing of anybody's, or nothing
without a signature of ours."""

APP = create_app(Settings())


class Route(NamedTuple):
    method: str
    path: str
    scope: str

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


ROUTES = [
    Route(method, route.path_format, scope_of(route.endpoint, method))
    for route in iter_route_contexts(APP.routes)
    if isinstance(route.original_route, APIRoute)
    for method in sorted(route.methods or ())
]
GUARDED = [route for route in ROUTES if route.scope]
OF_OWNERS = [route for route in GUARDED if route.scope != ADMIN]
WITH_ID = [route for route in OF_OWNERS if "{" in route.path]
LISTS = [route for route in OF_OWNERS if "{" not in route.path and route.method == "GET"]

Make = Callable[[People, httpx2.Client], str]


def sweep(_people: People, client: httpx2.Client) -> str:
    body = {"base": {}, "grid": {"training.epochs": [1, 2]}}
    return str(client.post("/v1/sweeps", json=body).raise_for_status().json()["id"])


def study(_people: People, client: httpx2.Client) -> str:
    body = example("POST", "/v1/studies")
    return str(client.post("/v1/studies", json=body).raise_for_status().json()["id"])


def webhook(_people: People, client: httpx2.Client) -> str:
    body = example("POST", "/v1/webhooks")
    return str(client.post("/v1/webhooks", json=body).raise_for_status().json()["id"])


def delivery(made: People, client: httpx2.Client) -> str:
    """Of the newest webhook, which is the one of `webhook`."""
    newest = client.get("/v1/webhooks").json()["webhooks"][0]
    row = outbox.delivery(newest["id"], "webhook.ping", outbox.message("webhook.ping", {}))
    made.service.add(row)
    return row.id


THINGS: dict[str, Make] = {
    "experiment_id": lambda _people, client: submitted(client),
    "artifact_id": lambda made, client: stored(made.service, submitted(client)),
    "sweep_id": sweep,
    "study_id": study,
    "model_id": lambda _people, client: sent_model(client),
    "dataset_id": lambda _people, client: sent_dataset(client),
    "webhook_id": webhook,
    "delivery_id": delivery,
}
"""How a person makes the thing that a path's parameter names; returns its id."""

NOT_IDS = {"part": "attack"}
"""Parameters of paths that name nothing of anybody's, each with a value that is allowed."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    with people(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="module")
def ann(made: People) -> httpx2.Client:
    return made.of("ann")


@pytest.fixture(scope="module")
def bob(made: People) -> httpx2.Client:
    return made.of("bob")


@pytest.fixture(scope="module")
def things(made: People, ann: httpx2.Client) -> dict[str, str]:
    """The ids of what Ann has, by the parameter that takes them."""
    return {name: make(made, ann) for name, make in THINGS.items()}


def example(method: str, path: str) -> Any:
    """The first example of a JSON body in the OpenAPI document."""
    operation = document()["paths"].get(path, {}).get(method.lower(), {})
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    return next((e["value"] for e in content.get("examples", {}).values()), None)


def parameters(path: str) -> list[str]:
    return [part.partition("}")[0] for part in path.split("{")[1:]]


def send(client: httpx2.Client, route: Route, ids: dict[str, str]) -> httpx2.Response:
    url = route.path
    for name in parameters(route.path):
        url = url.replace(f"{{{name}}}", ids.get(name, "x"))
    body = example(route.method, route.path)
    answer = client.request(route.method, url, json=body, headers={"Accept": "application/json"})
    check_headers(answer)
    return answer


def check_headers(answer: httpx2.Response) -> None:
    """No answer is guessed to be of another type, or given to somebody else by a cache."""
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] in ("no-store", "private, no-cache", "no-cache")


def is_api(route: Route) -> bool:
    """Whether a refusal has problem+json; pages say it in their own way."""
    return route.path.startswith("/v1/") and route.method != "HEAD"


def test_public_routes_are_those_that_are_known_to_be() -> None:
    found = {route.path for route in ROUTES if not route.scope}
    assert found == PUBLIC, (
        "a route is @public only if it shows nothing of anybody's; then add it to PUBLIC here"
    )


@pytest.mark.parametrize("route", GUARDED, ids=str)
def test_without_a_key(made: People, route: Route) -> None:
    answer = send(made.service.http, route, {})
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    if is_api(route):
        assert answer.headers["content-type"] == "application/problem+json"
        assert "API key" in answer.json()["detail"]


@pytest.fixture(scope="module")
def lacking(made: People) -> dict[str, httpx2.Client]:
    """Clients that have every scope but one."""
    return {scope: made.of("ann", *(other for other in ALL if other != scope)) for scope in ALL}


@pytest.mark.parametrize("route", GUARDED, ids=str)
def test_with_a_wrong_scope(lacking: dict[str, httpx2.Client], things: dict[str, str], route: Route) -> None:
    answer = send(lacking[route.scope], route, things)
    assert answer.status_code == 403
    if is_api(route):
        assert f"'{route.scope}'" in answer.json()["detail"]


@pytest.mark.parametrize("route", WITH_ID, ids=str)
def test_with_the_key_of_another_owner(bob: httpx2.Client, things: dict[str, str], route: Route) -> None:
    for name in parameters(route.path):
        if name not in NOT_IDS and name not in things:
            pytest.fail(
                f"{route}: the parameter {name!r} is new. Say in THINGS in tests/app/test_access.py how a person "
                "makes the thing that it names, or put it into NOT_IDS if it names nothing of anybody's."
            )
    answer = send(bob, route, things | NOT_IDS)
    if set(parameters(route.path)) <= set(NOT_IDS):
        assert not any(thing in answer.text for thing in things.values())
    else:
        assert answer.status_code == 404, answer.text


@pytest.mark.parametrize("route", LISTS, ids=str)
def test_lists_show_nothing_of_another_owner(
    bob: httpx2.Client, things: dict[str, str], route: Route
) -> None:
    ids = ",".join([things["experiment_id"]] * 2)
    answers = [bob.get(route.path), bob.get(route.path, params={"ids": ids})]
    for answer in answers:
        assert answer.status_code in (200, 404, 422), answer.text
        if answer.status_code == 200:
            assert not any(thing in answer.text for thing in things.values())


@pytest.mark.parametrize("name", THINGS)
def test_the_owner_finds_it_untouched(ann: httpx2.Client, things: dict[str, str], name: str) -> None:
    """After all those tries. If a test above had a wrong id, its 404 would mean nothing."""
    routes = [route for route in WITH_ID if route.method == "GET" and parameters(route.path)[-1] == name]
    assert routes
    assert any(send(ann, route, things).status_code == 200 for route in routes)
    if name not in ("artifact_id", "delivery_id"):
        kind = {"study_id": "studies"}.get(name, f"{name.removesuffix('_id')}s")
        assert ann.get(f"/v1/{kind}/{things[name]}").json()["id"] == things[name]
