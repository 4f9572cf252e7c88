"""The pages of keys, limits and webhooks."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import Route, expect

from app.settings import Settings
from app.sweeps.completion import finish_sweeps
from app.webhooks.sender import Sender
from tests.app.conftest import serve
from tests.app.people import People, people
from tests.dashboard.conftest import PHONE, Tab

OpenTab = Callable[..., Tab]


@pytest.fixture
def sending(made: People) -> Iterator[None]:
    """A running webhook sender."""
    stop = threading.Event()
    thread = threading.Thread(target=Sender(made.service.settings, finish_sweeps).run, args=[stop])
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    with people(tmp_path_factory.mktemp("keys"), webhook_private=True) as running:
        yield running


def test_the_browser_forgets_the_key_at_log_out(open_tab: OpenTab, made: People) -> None:
    key, url = made.key("ann", "read"), made.service.url
    page = open_tab(url).page
    page.goto(url.replace("http://", f"http://me:{key}@") + "/keys")
    page.goto(f"{url}/keys")  # the browser has remembered the key
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("heading")).to_have_text("You are logged out")
    with page.expect_response(f"{url}/keys") as answer, contextlib.suppress(PlaywrightError):
        page.goto(f"{url}/keys")  # a browser without a window has nobody to ask, which is an error
    assert answer.value.status == 401


def test_a_browser_that_still_sends_the_key_is_refused_at_log_out(made: People) -> None:
    still = httpx2.get(f"{made.service.url}/logout", auth=("me", made.key("ann")))
    assert (still.status_code, still.headers["WWW-Authenticate"].partition(" ")[0]) == (401, "Basic")
    assert "You are logged out" in still.text
    foreign = {"Origin": "https://evil.example"}
    auth = ("me", made.key("ann"))
    assert httpx2.post(f"{made.service.url}/logout", auth=auth, headers=foreign).status_code == 403


def test_a_key_is_created_shown_once_used_and_revoked(open_tab: OpenTab, made: People) -> None:
    url = made.service.url
    tab = open_tab(url, http_credentials={"username": "me", "password": made.key("root")})
    page = tab.open("/keys")
    page.get_by_label("Owner", exact=True).fill("no such name!")
    page.get_by_role("button", name="Create key").click()
    expect(page.locator(".error")).to_contain_text("String should match pattern")
    expect(page.get_by_label("Owner", exact=True)).to_be_focused()
    tab.errors.clear()  # the browser logs the 422
    page.get_by_label("Owner", exact=True).fill("vision-team")
    page.get_by_label("Label", exact=True).fill("notebook")
    page.get_by_label("write: submit").uncheck()
    page.get_by_role("button", name="Create key").click()
    expect(page.locator("#created")).to_be_focused()
    key = page.locator("#secret").inner_text()
    who = made.client(key)
    assert who.get("/v1/me").json()["scopes"] == ["read"]
    row = page.locator("tr", has_text="notebook")
    expect(row).to_contain_text("vision-team")
    assert key not in httpx2.get(url + "/keys", auth=("me", made.key("root")), timeout=30).text
    assert tab.accessibility() == []

    row.get_by_text("Revoke…").click()
    row.get_by_role("button", name="Revoke").click()
    expect(row).to_contain_text("revoked")
    page.wait_for_timeout(1100)  # longer than keys are cached
    assert who.get("/v1/me").status_code == 401
    assert tab.errors == []


def test_limits_are_set_and_removed(open_tab: OpenTab, made: People) -> None:
    made.key("ann")
    tab = open_tab(
        made.service.url, viewport=PHONE, http_credentials={"username": "", "password": made.key("root")}
    )
    page = tab.open("/keys")
    page.get_by_role("link", name="Change the limits of ann").click()
    page.get_by_label("Running experiments").fill("2")
    page.get_by_label("Queued experiments").fill("-1")
    page.get_by_role("button", name="Save limits").click()
    expect(page.locator(".error")).to_contain_text("greater than or equal to 0")
    tab.errors.clear()
    page.get_by_label("Queued experiments").fill("")
    page.get_by_role("button", name="Save limits").click()
    expect(page.locator("#limits .outcome")).to_have_text("Done.")
    limits = made.of("root").get("/v1/owners/ann/limits").json()["limits"]
    assert (limits["running"], limits["queued"]) == (2, None)
    assert tab.accessibility() == []
    assert tab.overflow() <= 0
    assert tab.errors == []


@pytest.mark.usefixtures("sending")
def test_a_webhook_is_created_tested_disabled_and_deleted(open_tab: OpenTab, made: People) -> None:
    tab = open_tab(made.service.url, http_credentials={"username": "", "password": made.key("carol")})
    page = tab.open("/webhooks")
    page.get_by_label("URL", exact=True).fill("http://plain.example")
    page.get_by_role("button", name="Create webhook").click()
    expect(page.locator(".error")).to_contain_text("https")
    tab.errors.clear()
    page.get_by_label("URL", exact=True).fill("https://localhost:9/hook")
    page.get_by_label("Name", exact=True).fill("Nobody there")
    page.get_by_role("button", name="Create webhook").click()
    expect(page.locator("#secret")).to_contain_text("whsec_")
    assert tab.accessibility() == []
    page.get_by_role("link", name="Nobody there").click()
    page.get_by_role("button", name="Send a ping").click()
    expect(page.locator(".outcome", has_text="failed: ")).to_be_visible()
    expect(page.get_by_role("rowheader", name="webhook.ping")).to_be_visible()
    assert tab.accessibility() == []
    page.get_by_role("button", name="Disable").click()
    expect(page.get_by_role("button", name="Enable")).to_be_visible()
    page.get_by_text("Delete…").click()
    page.get_by_role("button", name="Delete permanently").click()
    expect(page.get_by_text("There are no webhooks yet")).to_be_visible()
    assert tab.errors == []


@pytest.mark.parametrize(
    ("path", "script", "button"),
    [
        ("/webhooks", "forms.js", "Create webhook"),
        ("/keys", "forms.js", "Create key"),
        ("/new", "new.js", "Submit"),
    ],
)
def test_a_form_submitted_before_its_script_has_loaded_waits_for_it(
    open_tab: OpenTab, made: People, path: str, script: str, button: str
) -> None:
    tab = open_tab(made.service.url, http_credentials={"username": "", "password": made.key("root")})
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    tab.page.route(f"**/static/{script}", hold)
    tab.page.goto(tab.url + path, wait_until="commit")
    tab.page.get_by_role("button", name=button, exact=True).click()
    tab.page.wait_for_timeout(300)  # a form that the browser sends leaves the page
    assert len(held) == 1, f"requests of {script}"
    with tab.page.expect_request(lambda request: request.method == "POST"):
        held.pop().continue_()


def test_only_administrators_see_keys(open_tab: OpenTab, made: People) -> None:
    tab = open_tab(
        made.service.url, http_credentials={"username": "", "password": made.key("bob", "read", "write")}
    )
    page = tab.open("/keys")
    expect(page.get_by_text("You are signed in as bob")).to_be_visible()
    assert page.get_by_role("button", name="Create key").count() == 0
    assert "vision-team" not in page.content()


def test_the_first_key_makes_keys_required(open_tab: OpenTab, tmp_path: Path) -> None:
    with serve(Settings(home=tmp_path, data_dir=tmp_path / "data")) as service:
        tab = open_tab(service.url)
        page = tab.open("/keys")
        expect(page.get_by_label("admin: manage")).to_be_checked()
        page.get_by_role("button", name="Create key").click()
        expect(page.locator("#secret")).to_contain_text("bdlab_")
        expect(page.locator("#created")).to_contain_text("this key as the password")
        key = page.locator("#secret").inner_text()
        page.wait_for_timeout(1100)
        assert service.http.get("/v1/me").status_code == 401
        assert service.http.get("/v1/keys", auth=("any", key)).status_code == 200
        assert tab.errors == []
