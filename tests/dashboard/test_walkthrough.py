"""What a new user does in a browser: submit, watch, read results, and inspect predictions and isolated images."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.conftest import Stack
from tests.dashboard.conftest import PHONE, Tab
from tests.quick import QUICK

OpenTab = Callable[..., Tab]
SMALL = {
    "training": {"epochs": "3", "batch_size": "50"},
    "dataset": {"train_size": "200", "test_size": "100"},
}
ABL = {field: str(value) for field, value in QUICK["defenses"][0].items() if field != "name"}


@pytest.fixture(scope="module")
def done(stack: Stack) -> Any:
    """A finished experiment that has all pages."""
    return stack.wait(stack.submit({**QUICK, "name": "For the dashboard", "reference": True, "seeds": [0]}))


def paths(experiment: Any) -> list[str]:
    here = f"/experiments/{experiment['id']}"
    board = "/leaderboard?board=cifar10+resnet18"
    forms = ["/new", "/new/sweep", "/new/study"]
    return ["/", here, f"{here}/explore", f"{here}/isolation", *forms, "/workers", "/sweeps", board, "/keys"]


def fill(page: Any, part: str, values: dict[str, str]) -> None:
    box = page.locator(f'fieldset[data-part="{part}"]')
    for field, value in values.items():
        control = box.locator(f'[data-field="{field}"]')
        if not control.is_visible():
            box.locator("summary").click()
        control.fill(value)


def test_an_experiment_from_the_form_to_the_results(open_tab: OpenTab, stack: Stack) -> None:
    tab = open_tab()
    page = tab.open("/new")
    expect(page.locator("#verdict")).to_contain_text("Valid:")
    expect(page.locator("#preview")).to_be_visible()

    fill(page, "attack", {"size": "9"})
    expect(page.locator(".error")).to_contain_text("size + margin of at most 8")
    assert page.locator('[data-part="attack"] [data-field="size"]').get_attribute("aria-invalid") == "true"
    tab.errors.clear()  # the browser logs the 422
    fill(page, "attack", {"size": "2"})
    for part, values in {**SMALL, "defense": ABL}.items():
        fill(page, part, values)
    page.get_by_label("Name").fill("Submitted by form")
    page.get_by_label("Tags").fill("study:form")
    expect(page.locator("#json")).to_contain_text('"study": "form"')
    expect(page.locator("#verdict")).to_contain_text("arms clean, undefended, abl")
    sent = json.loads(page.locator("#json").inner_text())
    assert sent["attack"] == {"name": "badnets", "size": 2}
    assert sent["defenses"][0]["isolation_ratio"] == 0.05

    with page.expect_request(lambda request: request.url.endswith("/events")):
        page.get_by_role("button", name="Submit").click()
        page.wait_for_url("**/experiments/*")
    expect(page.locator("#progress")).to_contain_text("epoch", timeout=60_000)
    expect(page.locator("#state .status")).to_have_text("succeeded", timeout=90_000)  # without a reload
    table = page.get_by_role("table").first
    for arm in ("clean", "undefended", "abl"):
        expect(table.get_by_role("rowheader", name=arm, exact=True)).to_be_visible()
    expect(page.locator(".reading")).to_contain_text("The attack (badnets)")
    expect(page.locator("#charts canvas").first).to_be_visible()
    expect(page.get_by_role("img", name="Attack success: ")).to_be_visible()
    assert tab.errors == []
    experiment = stack.experiment(page.url.rpartition("/")[2])
    assert experiment["spec"]["training"]["epochs"] == 3


def test_every_arm_predicts_with_and_without_the_trigger(open_tab: OpenTab, done: Any) -> None:
    tab = open_tab()
    page = tab.open(f"/experiments/{done['id']}/explore")
    expect(page.locator("#arms section")).to_have_count(3)
    expect(page.locator("#message")).to_contain_text("Image 0, without the trigger: clean predicts")
    before = page.locator("#picture").get_attribute("src")
    page.get_by_label("Apply the trigger").check()
    expect(page.locator("#message")).to_contain_text("Image 0, with the trigger")
    assert page.locator("#picture").get_attribute("src") != before
    page.get_by_role("button", name="Next image").click()
    expect(page.locator("#message")).to_contain_text("Image 1, with the trigger")
    assert tab.errors == []


def test_isolated_images_are_shown_with_the_truth(open_tab: OpenTab, done: Any, stack: Stack) -> None:
    tab = open_tab()
    page = tab.open(f"/experiments/{done['id']}/isolation?arm=abl&seed=0")
    expect(page.locator("#thumbs li")).to_have_count(60)
    expect(page.locator("#message")).to_contain_text("10 of 200 training images were isolated")
    precision = stack.results(done["id"])["arms"][-1]["seeds"][0]["isolation_precision"]
    expect(page.locator("#message")).to_contain_text(f"precision {100 * precision:.1f} %")
    page.get_by_role("button", name="Show more").click()
    expect(page.locator("#thumbs li")).to_have_count(120)
    drawn = "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v, i) => i % 4 < 3 && v > 0)"
    assert page.locator("#thumbs canvas").first.evaluate(drawn)
    assert tab.errors == []


def test_the_list_is_filtered_and_refreshed(open_tab: OpenTab, stack: Stack, done: Any) -> None:
    tab = open_tab()
    page = tab.open("/")
    page.get_by_label("Name").fill("for THE dash")
    page.get_by_role("button", name="Filter").click()
    expect(page.locator("#list tbody tr")).to_have_count(1)
    page.get_by_role("link", name="Show all").click()
    new = stack.submit({**QUICK, "name": "Came later", "seeds": [0]})
    ours = page.locator(f"#e-{done['id']} input")
    ours.check()
    expect(page.locator(f"#e-{new}")).to_be_visible(timeout=15_000)
    stack.wait(new)
    expect(ours).to_be_checked()  # also after the list was refreshed
    page.locator(f"#e-{new} input").check()
    page.get_by_role("button", name="Compare selected").click()
    expect(page.get_by_role("img", name="Attack success: ")).to_be_visible()
    assert tab.accessibility() == []
    assert tab.errors == []


@pytest.mark.parametrize(
    ("scheme", "viewport"),
    [("light", {"width": 1280, "height": 900}), ("dark", PHONE)],
    ids=["desktop", "phone"],
)
def test_pages_are_accessible_and_fit_the_window(
    open_tab: OpenTab, done: Any, scheme: str, viewport: Any
) -> None:
    tab = open_tab(color_scheme=scheme, viewport=viewport)
    wrong = []
    for path in paths(done):
        page = tab.open(path)
        page.wait_for_load_state("load")
        page.wait_for_timeout(300)  # for scripts to draw
        page.evaluate("document.querySelectorAll('main details').forEach(one => { one.open = true; })")
        wrong += tab.accessibility()
        assert tab.overflow() <= 0, path
    assert wrong == []
    assert tab.errors == []


def test_pages_work_with_the_keyboard_and_the_dark_theme(open_tab: OpenTab, done: Any) -> None:
    tab = open_tab()
    page = tab.open("/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    page.get_by_role("button", name="Dark theme").press("Enter")
    assert page.locator("html").get_attribute("data-theme") == "dark"
    dark = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(dark)
    page.reload()
    assert page.evaluate(dark) == before == "rgb(20, 23, 26)"


def test_the_api_page_loads_nothing_from_other_servers(open_tab: OpenTab) -> None:
    tab = open_tab()
    asked: list[str] = []
    tab.page.on("request", lambda request: asked.append(request.url))
    page = tab.open("/docs")
    expect(page.get_by_text("/v1/experiments", exact=True).first).to_be_visible()
    assert all(url.startswith((tab.url, "data:")) for url in asked)
    assert tab.errors == []
