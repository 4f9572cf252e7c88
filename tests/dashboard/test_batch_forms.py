"""The forms of sweeps and studies, filled in from a finished experiment."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import expect

from app.settings import Settings
from tests.app.conftest import Service, serve
from tests.app.numbers import arm, done
from tests.dashboard.conftest import PHONE, Tab

OpenTab = Callable[..., Tab]
SPEC: dict[str, Any] = {
    "name": "Start here",
    "dataset": {"name": "digits", "train_size": 300},
    "attack": {"name": "blend", "alpha": 0.3},
    "training": {"epochs": 4, "schedule": "constant", "augmentation": {"flip": True}},
    "defenses": [{"name": "abl", "preset": "paper"}, {"name": "fine_pruning", "steps": 3}],
    "reference": True,
    "seeds": [0, 1],
    "device": "cpu",
    "tags": {"study": "two words", "by": "form"},
}
ARMS = ("clean", "undefended", "abl", "fine_pruning")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("many")
    with serve(Settings(home=home, data_dir=home / "data", interactive_timeout=0.2)) as running:
        yield running


@pytest.fixture(scope="module")
def start(service: Service) -> str:
    """The ID of a finished experiment with results and without files."""
    return str(done(service, SPEC, {(name, seed): arm(0.9, 0.5) for name in ARMS for seed in (0, 1)})["id"])


def request_of(page: Any) -> Any:
    return json.loads(page.locator("#json").inner_text())


def test_a_form_copied_from_an_experiment_gives_the_same_spec(
    open_tab: OpenTab, service: Service, start: str
) -> None:
    tab = open_tab(service.url)
    page = tab.open(f"/experiments/{start}")
    page.get_by_role("link", name="Change and run").click()
    expect(page.locator("#verdict")).to_contain_text("Valid:")
    sent = request_of(page)
    assert sent["tags"] == SPEC["tags"]
    told = service.http.post("/v1/experiments:validate", json=sent).json()
    assert told["spec_hash"] == service.get(start)["spec_hash"]
    assert tab.accessibility() == []


def test_a_sweep_is_validated_and_submitted(open_tab: OpenTab, service: Service, start: str) -> None:
    tab = open_tab(service.url)
    page = tab.open(f"/new/sweep?from={start}")
    expect(page.locator("#verdict")).to_contain_text("2 cells")
    values = page.get_by_label("Values, separated by commas")
    values.first.fill("0.05, 2")
    expect(page.locator(".error")).to_contain_text(
        "less than or equal to 1 (cell 1: attack.poisoning_rate=2)"
    )
    assert values.first.get_attribute("aria-invalid") == "true"
    tab.errors.clear()  # the browser logs the 422
    values.first.fill("0.05, 0.1, 0.2")
    page.get_by_role("button", name="Add a field").click()
    expect(page.get_by_label("Field", exact=True).nth(1)).to_be_focused()
    page.keyboard.type("attack.poisoning_rate")
    values.nth(1).fill("0.3")
    expect(page.locator(".error")).to_contain_text("is listed already")
    page.get_by_label("Field", exact=True).nth(1).fill("defenses.0.isolation_ratio")
    values.nth(1).fill("0.02, 0.05")
    expect(page.locator("#verdict")).to_contain_text("6 cells with 48 models")
    assert "defenses.1.steps" in page.locator("#paths option").evaluate_all("all => all.map(o => o.value)")
    page.get_by_label("Name", exact=True).fill("Six cells")
    expect(page.locator("#json")).to_contain_text("Six cells")
    assert request_of(page)["base"]["attack"] == SPEC["attack"]
    assert tab.accessibility() == []
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url("**/sweeps/*")
    expect(page.get_by_role("heading", name="Six cells")).to_be_visible()
    expect(page.locator("tbody tr")).to_have_count(6)
    assert tab.accessibility() == []
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("6 canceled")).to_be_visible()
    page.get_by_text("Delete…").click()
    page.get_by_role("button", name="Delete permanently").click()
    expect(page.get_by_role("heading", name="Studies and sweeps")).to_be_visible()
    assert service.http.get("/v1/sweeps").json()["sweeps"] == []
    assert tab.errors == []


def test_a_study_reuses_results_and_requires_row_names(
    open_tab: OpenTab, service: Service, start: str
) -> None:
    tab = open_tab(service.url, viewport=PHONE)
    page = tab.open(f"/new/study?from={start}")
    expect(page.locator("#verdict")).to_contain_text("8 cells, 8 with results already")
    page.locator("#add-row-name").select_option("blend")
    page.get_by_role("button", name="Add attack").click()
    expect(page.locator(".errors").first).to_contain_text("set `label` to rename a row")
    tab.errors.clear()
    page.get_by_label("Row name").nth(1).fill("blend, weak")
    page.locator("#rows fieldset:nth-child(2) summary").click()
    page.locator('#rows fieldset:nth-child(2) [data-field="alpha"]').fill("0.1")
    expect(page.locator("#verdict")).to_contain_text("16 cells, 8 with results")
    assert tab.accessibility() == []
    assert tab.overflow() <= 0
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url("**/studies/*")
    expect(page.get_by_role("rowheader", name="blend, weak")).to_be_visible()
    expect(page.get_by_text("2 queued").first).to_be_visible()
    assert tab.accessibility() == []
    assert tab.overflow() <= 0
    assert tab.errors == []
