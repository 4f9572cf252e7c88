"""What a newcomer does in a browser: submit, watch, read, ask the models, look at the isolated images."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.conftest import Stack
from tests.dashboard.conftest import PHONE, Tab
from tests.quick import QUICK

NewTab = Callable[..., Tab]
SMALL = {
    "training": {"epochs": "3", "batch_size": "50"},
    "dataset": {"train_size": "200", "test_size": "100"},
}
ABL = {field: str(value) for field, value in QUICK["defenses"][0].items() if field != "name"}


@pytest.fixture(scope="module")
def done(stack: Stack) -> Any:
    """A finished experiment with every kind of page."""
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


def test_from_the_form_to_the_numbers(tab: NewTab, stack: Stack) -> None:
    walk = tab()
    page = walk.open("/new")
    expect(page.locator("#verdict")).to_contain_text("Valid:")
    expect(page.locator("#preview")).to_be_visible()

    fill(page, "attack", {"size": "9"})
    expect(page.locator(".error")).to_contain_text("at most 8 pixels")
    assert page.locator('[data-part="attack"] [data-field="size"]').get_attribute("aria-invalid") == "true"
    walk.faults.clear()  # the browser notes the 422 that this was about
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
    assert walk.faults == []
    experiment = stack.experiment(page.url.rpartition("/")[2])
    assert experiment["spec"]["training"]["epochs"] == 3


def test_every_arm_answers_with_the_trigger_and_without(tab: NewTab, done: Any) -> None:
    walk = tab()
    page = walk.open(f"/experiments/{done['id']}/explore")
    expect(page.locator("#arms section")).to_have_count(3)
    expect(page.locator("#message")).to_contain_text("Image 0, without the trigger: clean predicts")
    before = page.locator("#picture").get_attribute("src")
    page.get_by_label("Apply the trigger").check()
    expect(page.locator("#message")).to_contain_text("Image 0, with the trigger")
    assert page.locator("#picture").get_attribute("src") != before
    page.get_by_role("button", name="Next image").click()
    expect(page.locator("#message")).to_contain_text("Image 1, with the trigger")
    assert walk.faults == []


def test_the_isolated_images_are_shown_beside_the_truth(tab: NewTab, done: Any, stack: Stack) -> None:
    walk = tab()
    page = walk.open(f"/experiments/{done['id']}/isolation?arm=abl&seed=0")
    expect(page.locator("#thumbs li")).to_have_count(60)
    expect(page.locator("#message")).to_contain_text("10 of 200 training images were isolated")
    precision = stack.results(done["id"])["arms"][-1]["seeds"][0]["isolation_precision"]
    expect(page.locator("#message")).to_contain_text(f"precision {100 * precision:.1f} %")
    page.get_by_role("button", name="Show more").click()
    expect(page.locator("#thumbs li")).to_have_count(120)
    drawn = "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v, i) => i % 4 < 3 && v > 0)"
    assert page.locator("#thumbs canvas").first.evaluate(drawn)
    assert walk.faults == []


def test_the_list_filters_and_stays_up_to_date(tab: NewTab, stack: Stack, done: Any) -> None:
    walk = tab()
    page = walk.open("/")
    page.get_by_label("Name").fill("for THE dash")
    page.get_by_role("button", name="Filter").click()
    expect(page.locator("#list tbody tr")).to_have_count(1)
    page.get_by_role("link", name="Show all").click()
    new = stack.submit({**QUICK, "name": "Came later", "seeds": [0]})
    ours = page.locator(f"#e-{done['id']} input")
    ours.check()
    expect(page.locator(f"#e-{new}")).to_be_visible(timeout=15_000)
    stack.wait(new)
    expect(ours).to_be_checked()  # also after the list came anew
    page.locator(f"#e-{new} input").check()
    page.get_by_role("button", name="Compare selected").click()
    expect(page.get_by_role("img", name="Attack success: ")).to_be_visible()
    assert walk.accessibility() == []
    assert walk.faults == []


@pytest.mark.parametrize(
    ("scheme", "viewport"),
    [("light", {"width": 1280, "height": 900}), ("dark", PHONE)],
    ids=["desktop", "phone"],
)
def test_pages_are_accessible_and_fit(tab: NewTab, done: Any, scheme: str, viewport: Any) -> None:
    walk = tab(color_scheme=scheme, viewport=viewport)
    wrong = []
    for path in paths(done):
        page = walk.open(path)
        page.wait_for_load_state("load")
        page.wait_for_timeout(300)  # for what scripts draw
        page.evaluate("document.querySelectorAll('main details').forEach(one => { one.open = true; })")
        wrong += walk.accessibility()
        assert walk.overflow() <= 0, path
    assert wrong == []
    assert walk.faults == []


def test_with_the_keyboard_and_in_the_dark(tab: NewTab, done: Any) -> None:
    walk = tab()
    page = walk.open("/")
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


def test_the_api_page_works_without_another_server(tab: NewTab) -> None:
    walk = tab()
    asked: list[str] = []
    walk.page.on("request", lambda request: asked.append(request.url))
    page = walk.open("/docs")
    expect(page.get_by_text("/v1/experiments", exact=True).first).to_be_visible()
    assert all(url.startswith((walk.url, "data:")) for url in asked)
    assert walk.faults == []
