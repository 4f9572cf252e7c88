"""`make screenshots`: every page of the dashboard on a real run, light and dark, desktop and phone.

All of them go to var/screenshots, to be looked at; the three that the README shows go to docs/images.
"""

import io
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.conftest import Stack
from tests.dashboard.conftest import DESKTOP, FLAGS, PHONE
from tests.quick import QUICK

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs/images"
EVERY = ROOT / "var/screenshots"
MOST_SECONDS = 900
"""Idle, two cores need about two minutes."""
README = ("experiment", "predictions", "isolation")
LARGEST = 150_000  # bytes of a picture in the README
STUDY: dict[str, Any] = {
    "name": "Two attacks, two defences",
    "dataset": {"name": "digits", "train_size": 400},
    "attacks": [{"attack": {"name": "badnets"}}, {"attack": {"name": "blend"}}],
    "defenses": [{"name": "fine_tuning", "epochs": 5}, {"name": "fine_pruning", "epochs": 5}],
    "training": {"epochs": 8},
    "seeds": [0],
}
SWEEP: dict[str, Any] = {
    "name": "How much must be isolated",
    "base": {**QUICK, "name": "", "seeds": [0]},
    "grid": {"attack.poisoning_rate": [0.1, 0.2], "defenses.0.isolation_ratio": [0.02, 0.05]},
}


class TooLongError(Exception):
    """The time is up. No TimeoutError, which an HTTP client on the way would take for its own."""


def main() -> int:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        print("There is no Chromium; on Debian: apt-get install chromium", file=sys.stderr)
        return 1
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(MOST_SECONDS)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        stack = Stack(Path(folder) / "home")
        try:
            stack.start()
            pages = prepare(stack)
            shutil.rmtree(EVERY, ignore_errors=True)
            EVERY.mkdir(parents=True)
            browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
            for scheme in ("light", "dark"):
                for size, viewport in (("desktop", DESKTOP), ("phone", PHONE)):
                    shoot(browser, stack.url, pages, f"{scheme}-{size}", scheme, viewport)
            browser.close()
        except TooLongError as error:
            print(error, file=sys.stderr)
            return 1
        finally:
            signal.alarm(0)
            stack.stop()
    print(f"{len(list(EVERY.glob('*.png')))} pictures in {EVERY.relative_to(ROOT)}")
    return 0


def _too_long(_signal: int, _frame: FrameType | None) -> None:
    raise TooLongError(f"the pictures were not done within {MOST_SECONDS} s; is this machine busy?")


def prepare(stack: Stack) -> dict[str, str]:
    """Run the example of the README, a study and a sweep; returns the pages to show by name."""
    example = json.loads((ROOT / "examples/digits-badnets-abl.json").read_text())
    done = stack.submit(example)
    sweep = stack.post("/v1/sweeps", SWEEP)["id"]
    study = stack.post("/v1/studies", STUDY)["id"]
    print("running an experiment, a sweep and a study", flush=True)
    stack.wait(done, timeout=MOST_SECONDS)
    for path in (f"/v1/sweeps/{sweep}", f"/v1/studies/{study}"):
        stack.eventually(lambda at=path: stack.get(at)["status"] == "succeeded", MOST_SECONDS, path)  # type: ignore[misc]
    busy = stack.submit({**example, "name": "At work", "seeds": [7], "training": {"epochs": 300}})
    waits = stack.submit({**example, "name": "Waits for its turn", "seeds": [8]})
    stack.eventually(
        lambda: stack.experiment(busy)["progress"].get("epoch"), MOST_SECONDS, "no epoch was trained"
    )
    here = f"/experiments/{done}"
    return {
        "list": "/",
        "experiment": here,
        "running": f"/experiments/{busy}",
        "waiting": f"/experiments/{waits}",
        "predictions": f"{here}/explore?index=0&triggered=true",
        "isolation": f"{here}/isolation",
        "new": "/new",
        "new-sweep": f"/new/sweep?from={done}",
        "new-study": "/new/study",
        "studies": "/sweeps",
        "study": f"/studies/{study}",
        "sweep": f"/sweeps/{sweep}",
        "compare": f"/compare?ids={done}&ids={busy}",
        "leaderboard": "/leaderboard",
        "published": "/leaderboard?board=cifar10+resnet18",
        "workers": "/workers",
        "keys": "/keys?owner=local",
        "webhooks": "/webhooks",
        "refused": "/experiments/unknown",
    }


def shoot(browser: Browser, url: str, pages: dict[str, str], mode: str, scheme: Any, viewport: Any) -> None:
    print(mode, flush=True)
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
    if name == "predictions":
        expect(page.locator("#said")).to_contain_text("with the trigger:", timeout=60_000)
    if name == "isolation":
        page.locator("#thumbs li").first.wait_for(timeout=60_000)
    if name.startswith("new"):
        expect(page.locator("#verdict")).to_contain_text("It can run", timeout=60_000)
    if name in ("new", "new-sweep"):
        page.locator("#preview").wait_for(state="visible", timeout=60_000)
    page.evaluate("document.querySelectorAll('img').forEach(image => { image.loading = 'eager'; })")
    page.wait_for_timeout(500)


def keep(png: bytes, path: Path) -> None:
    """A picture for the README, in 256 colours. Raises ValueError if it is still too large."""
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256).save(path, optimize=True)
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; at most {LARGEST} are allowed")


if __name__ == "__main__":
    sys.exit(main())
