"""`make screenshots`: every page of the dashboard on a real run, light and dark, desktop and phone.

All of them go to docs/images/dashboard, to be looked at; the three that the README shows go to docs/images.
"""

import io
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.conftest import Stack
from tests.dashboard.conftest import DESKTOP, FLAGS, PHONE

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs/images"
EVERY = IMAGES / "dashboard"
PATIENCE = 900.0
README = ("experiment", "predictions", "isolation")
LARGEST = 150_000  # bytes of a picture in the README


def main() -> int:
    path = shutil.which("chromium")
    if path is None:
        print("There is no Chromium; on Debian: apt-get install chromium", file=sys.stderr)
        return 1
    shutil.rmtree(EVERY, ignore_errors=True)
    EVERY.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        stack = Stack(Path(folder) / "home")
        stack.start()
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            pages = prepare(stack)
            for scheme in ("light", "dark"):
                for size, viewport in (("desktop", DESKTOP), ("phone", PHONE)):
                    shoot(browser, stack.url, pages, f"{scheme}-{size}", scheme, viewport)
        finally:
            browser.close()
            stack.stop()
    print(f"{len(list(EVERY.glob('*.png')))} pictures in {EVERY.relative_to(ROOT)}")
    return 0


def prepare(stack: Stack) -> dict[str, str]:
    """Run the example of the README and a small study; returns the pages to show by name."""
    example = json.loads((ROOT / "examples/digits-badnets-abl.json").read_text())
    done = stack.submit(example)
    study = stack.post("/v1/studies", STUDY)["id"]
    stack.wait(done, timeout=PATIENCE)
    stack.eventually(
        lambda: stack.get(f"/v1/studies/{study}")["status"] == "succeeded", PATIENCE, "the study"
    )
    busy = stack.submit({**example, "name": "At work", "seeds": [7], "training": {"epochs": 300}})
    stack.submit({**example, "name": "Waits for its turn", "seeds": [8]})
    stack.eventually(lambda: stack.experiment(busy)["progress"].get("epoch"), 60, "no epoch was trained")
    here = f"/experiments/{done}"
    return {
        "list": "/",
        "experiment": here,
        "running": f"/experiments/{busy}",
        "predictions": f"{here}/explore",
        "isolation": f"{here}/isolation",
        "new": "/new",
        "studies": "/sweeps",
        "study": f"/studies/{study}",
        "compare": f"/compare?ids={done}&ids={busy}",
        "leaderboard": "/leaderboard",
        "published": "/leaderboard?board=cifar10+resnet18",
        "workers": "/workers",
        "keys": "/keys",
        "refused": "/experiments/unknown",
    }


STUDY: dict[str, Any] = {
    "name": "Two attacks, two defences",
    "dataset": {"name": "digits", "train_size": 400},
    "attacks": [{"attack": {"name": "badnets"}}, {"attack": {"name": "blend"}}],
    "defenses": [{"name": "fine_tuning", "epochs": 10}, {"name": "fine_pruning", "epochs": 10}],
    "training": {"epochs": 8},
    "seeds": [0],
}


def shoot(browser: Browser, url: str, pages: dict[str, str], mode: str, scheme: Any, viewport: Any) -> None:
    context = browser.new_context(viewport=viewport, color_scheme=scheme)
    for name, path in pages.items():
        page = context.new_page()
        page.goto(url + path)
        settle(page, name)
        if name in README and mode == "light-desktop":
            keep(page.screenshot(), IMAGES / f"dashboard-{name}.png")
        page.screenshot(path=EVERY / f"{name}-{mode}.png", full_page=True)
        page.close()
    context.close()


def settle(page: Page, name: str) -> None:
    """Wait for what scripts fetch and draw, and load the pictures further down."""
    page.wait_for_timeout(500)
    if name == "predictions":
        page.get_by_label("Put the trigger on").check()
        expect(page.locator("#said")).to_contain_text("with the trigger", timeout=60_000)
    if name == "new":
        page.locator("#preview").wait_for(state="visible", timeout=60_000)
    page.evaluate("document.querySelectorAll('img').forEach(image => { image.loading = 'eager'; })")
    page.wait_for_timeout(700)


def keep(png: bytes, path: Path) -> None:
    """A picture for the README, in 256 colours. Raises ValueError if it is still too large."""
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256).save(path, optimize=True)
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; at most {LARGEST} are allowed")


if __name__ == "__main__":
    sys.exit(main())
