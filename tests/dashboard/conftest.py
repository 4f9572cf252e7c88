"""The system's Chromium, and tabs in it that record every error."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

AXE = (Path(__file__).parent / "vendor" / "axe.min.js").read_text()
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
expect.set_options(timeout=20_000)  # a busy machine is slow
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of Chromium. Without it these tests are skipped, or fail in continuous integration."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        reason = "Chromium is not installed; on Debian: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="package")
def browser(chromium: str) -> Iterator[Browser]:
    """Closed after these tests, because Playwright keeps an event loop running and other tests start their own."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield started
        started.close()


class Tab:
    """A tab that shows pages of the dashboard. ``errors`` are console errors, exceptions and policy violations."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.errors: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.errors.append(f"exception: {error}"))
        page.on("requestfailed", self._failed)

    def open(self, path: str) -> Page:
        self.page.goto(self.url + path)
        return self.page

    def accessibility(self) -> list[str]:
        """The violations that axe-core finds on the current page."""
        self.page.evaluate(AXE)
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{self.page.url}: {v['id']}: {v['help']}: {[n['target'] for n in v['nodes']][:3]}"
            for v in found["violations"]
        ]

    def overflow(self) -> int:
        """The number of pixels by which the page is wider than its window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(f"{self.page.url}: {message.type}: {message.text}")

    def _failed(self, request: Any) -> None:
        # Leaving a page aborts its streams and pictures.
        if request.failure != "net::ERR_ABORTED":
            self.errors.append(f"{request.url}: {request.failure}")


@pytest.fixture
def open_tab(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Callable[..., Tab]]:
    """Opens a tab in a new context, for the service at ``url`` or the shared one. Other keyword arguments are those of
    Playwright's `new_context`."""
    made = []

    def new(url: str = "", **options: Any) -> Tab:
        context = browser.new_context(**{"viewport": DESKTOP, "color_scheme": "light", **options})
        context.set_default_timeout(30_000)
        made.append(context)
        return Tab(context.new_page(), url or request.getfixturevalue("stack").url)

    yield new
    for context in made:
        context.close()
