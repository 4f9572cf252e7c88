"""Pages that refresh themselves: after events, and while the service does not respond."""

import json
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Route, expect

from app.core.database import utcnow
from app.settings import Settings
from app.tables.artifacts import Artifact
from tests.app.conftest import Service, serve
from tests.app.numbers import arm, done, record
from tests.dashboard.conftest import Tab

OpenTab = Callable[..., Tab]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("live")
    with serve(Settings(home=home, data_dir=home / "data", interactive_timeout=0.2)) as running:
        yield running


def test_a_page_reports_lost_and_restored_connections(open_tab: OpenTab, service: Service) -> None:
    tab = open_tab(service.url)
    page = tab.open("/workers")
    page.route("**/workers", lambda route: route.fulfill(status=503, body="away"))
    expect(page.locator("#connection")).to_contain_text("The service returned an error (503)")
    expect(page.get_by_role("heading", name="Queues", exact=True)).to_be_visible()
    assert tab.accessibility() == []
    page.unroute("**/workers")
    page.route("**/workers", lambda route: route.abort())
    expect(page.locator("#connection")).to_be_visible()
    page.unroute("**/workers")
    expect(page.locator("#connection")).to_be_hidden()


def test_the_end_of_an_experiment_is_shown_without_a_reload(open_tab: OpenTab, service: Service) -> None:
    id = service.submit({"name": "Ends soon"})["id"]
    tab = open_tab(service.url)
    with tab.page.expect_request(lambda request: request.url.endswith("/events")):
        page = tab.open(f"/experiments/{id}")
    expect(page.get_by_text("No worker is running")).to_be_visible()
    record(service, id, {("undefended", 0): arm(0.95, 1.0)})
    service.end(id)
    expect(page.locator("#state .status")).to_have_text("succeeded")
    expect(page.locator(".reading")).to_contain_text("The attack (badnets) works")
    assert tab.errors == []


def test_the_url_of_predictions_names_the_image(open_tab: OpenTab, service: Service) -> None:
    id = done(service, {"name": "Asked"}, {("undefended", 0): arm(0.95, 1.0)})["id"]
    digest, key = service.store(b"weights")
    file = {
        "name": "seed-0/undefended/model.safetensors",
        "arm": "undefended",
        "seed": 0,
        "kind": "checkpoint",
    }
    more = {"media_type": "application/octet-stream", "size": 7, "sha256": digest, "object_key": key}
    service.add(Artifact(experiment_id=id, details={}, created_at=utcnow(), **file, **more))
    asked: list[dict[str, object]] = []

    def answer(route: Route) -> None:
        asked.append(json.loads(route.request.post_data or ""))
        said: dict[str, object] = {
            "arm": "undefended",
            "class": 0,
            "class_name": "zero",
            "probabilities": [1.0] + [0.0] * 9,
        }
        said["detection"] = {"suspicion": -0.0412345, "threshold": -0.25, "flagged": True}
        image = {"label": 7, "label_name": "seven"}
        route.fulfill(json={"arms": [said], "image": image, "picture": ""})

    tab = open_tab(service.url)
    tab.page.route("**/predict", answer)
    page = tab.open(f"/experiments/{id}/explore?index=12&triggered=true")
    expect(page.locator("#message")).to_contain_text("Image 12, with the trigger: undefended predicts zero")
    page.get_by_role("button", name="Next image").click()
    expect(page.locator("#message")).to_contain_text("Image 13, with the trigger")
    assert "index=13&triggered=true" in page.url
    assert [(one["index"], one["triggered"]) for one in asked] == [(12, True), (13, True)]
    expect(page.locator("#arms")).to_contain_text("the attack's target")
    verdict = "input detection: flagged as triggered suspicion -0.04123, threshold -0.25"
    expect(page.locator("#arms")).to_contain_text(verdict)
