"""`make screenshots`: every page of the dashboard after a real run, light and dark, on a desktop and a phone.

All of them go to var/screenshots, to be looked at; the three that the README shows go to docs/images.
"""

import io
import json
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.conftest import Stack
from tests.dashboard.conftest import DESKTOP, FLAGS, PHONE

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs/images"
EVERY = ROOT / "var/screenshots"
EXAMPLE: dict[str, Any] = json.loads((ROOT / "examples/digits-badnets-abl.json").read_text())
MOST_SECONDS, PATIENCE_MS = 1800, 120_000
"""Two idle cores need about two minutes; the limits are generous for a busy machine."""
README = ("experiment", "predictions", "isolation")
LARGEST = 150_000  # bytes of a screenshot in the README
DATA = {"name": "digits", "train_size": 400}
STUDY: dict[str, Any] = {
    "name": "Two attacks, two defenses",
    "dataset": DATA,
    "attacks": [{"attack": {"name": "badnets"}}, {"attack": {"name": "blend"}}],
    "defenses": [{"name": "fine_tuning", "steps": 50}, {"name": "fine_pruning", "steps": 50}],
    "training": {"epochs": 8},
    "seeds": [0],
}
SWEEP: dict[str, Any] = {
    "name": "Isolation ratio",
    "base": {
        "dataset": DATA,
        "attack": {"name": "badnets"},
        "defenses": [{"name": "abl"}],
        "training": {"epochs": 8},
    },
    "grid": {"attack.poisoning_rate": [0.1, 0.2], "defenses.0.isolation_ratio": [0.02, 0.05]},
}


class TooLongError(Exception):
    """The time limit is exceeded. Not a TimeoutError, which an HTTP client would handle as its own."""


def main() -> int:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        print("Chromium is not installed; on Debian: apt-get install chromium", file=sys.stderr)
        return 1
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(MOST_SECONDS)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        patient = {
            "BDLAB_LEASE_SECONDS": "60",
            "BDLAB_HEARTBEAT_SECONDS": "5",
        }  # so that leases do not expire on a busy machine
        stack = Stack(Path(folder) / "home", **patient)
        try:
            stack.start()
            shutil.rmtree(EVERY, ignore_errors=True)
            EVERY.mkdir(parents=True)
            browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
            done = run_to_the_end(stack)
            for pages in (start_unfinished(stack), done):
                for size, viewport in (("desktop", DESKTOP), ("phone", PHONE)):
                    take_screenshots(browser, stack.url, pages, size, viewport)
                for one in stack.get("/v1/experiments", status="running")["experiments"]:
                    stack.post(
                        f"/v1/experiments/{one['id']}:cancel"
                    )  # it would slow down the other screenshots
            browser.close()
        except Exception:  # print it now: stopping the service may raise too and hide it
            traceback.print_exc()
            return 1
        finally:
            signal.alarm(0)
            stack.stop()
    print(f"{len(list(EVERY.glob('*.png')))} screenshots in {EVERY.relative_to(ROOT)}")
    return 0


def _too_long(_signal: int, _frame: FrameType | None) -> None:
    raise TooLongError(f"the screenshots were not finished within {MOST_SECONDS} s")


def run_to_the_end(stack: Stack) -> dict[str, str]:
    """Run the README's example, a study and a sweep. Returns paths of pages by name."""
    done = stack.submit(EXAMPLE)
    sweep = stack.post("/v1/sweeps", SWEEP)["id"]
    study = stack.post("/v1/studies", STUDY)["id"]
    print("running an experiment, a sweep and a study", flush=True)
    stack.wait(done, timeout=MOST_SECONDS)
    for path in (f"/v1/sweeps/{sweep}", f"/v1/studies/{study}"):
        stack.eventually(lambda at=path: stack.get(at)["status"] == "succeeded", MOST_SECONDS, path)  # type: ignore[misc]
    cells = [cell["experiment_id"] for cell in stack.get(f"/v1/sweeps/{sweep}/cells")["cells"]]
    here = f"/experiments/{done}"
    return {
        "experiment": here,
        "predictions": f"{here}/explore?index=3&triggered=true",
        "isolation": f"{here}/isolation",
        "new": "/new",
        "new-sweep": f"/new/sweep?from={done}",
        "new-study": "/new/study",
        "studies": "/sweeps",
        "study": f"/studies/{study}",
        "sweep": f"/sweeps/{sweep}",
        "compare": f"/compare?ids={cells[0]}&ids={cells[-1]}",
        "leaderboard": "/leaderboard",
        "published": "/leaderboard?board=cifar10+resnet18",
        "keys": "/keys?owner=local",
        "webhooks": "/webhooks",
        "refused": "/experiments/unknown",
    }


def start_unfinished(stack: Stack) -> dict[str, str]:
    """Start a long experiment and queue another one. Returns paths of pages by name."""
    busy = stack.submit({**EXAMPLE, "name": "At work", "seeds": [7], "training": {"epochs": 300}})
    waits = stack.submit({**EXAMPLE, "name": "Queued", "seeds": [8]})
    stack.eventually(
        lambda: stack.experiment(busy)["progress"].get("epoch"), MOST_SECONDS, "no epoch was trained"
    )
    return {
        "list": "/",
        "running": f"/experiments/{busy}",
        "waiting": f"/experiments/{waits}",
        "workers": "/workers",
    }


def take_screenshots(browser: Browser, url: str, pages: dict[str, str], size: str, viewport: Any) -> None:
    """Take screenshots of each page in the light theme, then in the dark one without a reload."""
    context = browser.new_context(viewport=viewport)
    context.set_default_timeout(PATIENCE_MS)
    for name, path in pages.items():
        print(f"{name}, {size}", flush=True)
        page = context.new_page()
        page.emulate_media(color_scheme="light")
        page.goto(url + path)
        wait_until_drawn(page, name)
        if name in README and size == "desktop":
            save_readme_image(page.screenshot(), IMAGES / f"dashboard-{name}.png")
        page.screenshot(path=EVERY / f"{name}-light-{size}.png", full_page=True)
        page.emulate_media(color_scheme="dark")
        page.wait_for_timeout(100)
        page.screenshot(path=EVERY / f"{name}-dark-{size}.png", full_page=True)
        page.close()
    context.close()


def wait_until_drawn(page: Page, name: str) -> None:
    """Wait for scripts to finish, and load lazy images."""
    if name == "predictions":
        expect(page.locator("#message")).to_contain_text("with the trigger:", timeout=PATIENCE_MS)
    if name == "isolation":
        page.locator("#thumbs li").first.wait_for(timeout=PATIENCE_MS)
    if name.startswith("new"):
        expect(page.locator("#verdict")).to_contain_text("Valid:", timeout=PATIENCE_MS)
    if name in ("new", "new-sweep"):
        page.locator("#preview").wait_for(state="visible", timeout=PATIENCE_MS)
    page.evaluate("document.querySelectorAll('img').forEach(image => { image.loading = 'eager'; })")
    page.wait_for_timeout(500)


def save_readme_image(png: bytes, path: Path) -> None:
    """Save a screenshot for the README, in 256 colors. Raises ValueError if it is still too large."""
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256).save(path, optimize=True)
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; at most {LARGEST} are allowed")


if __name__ == "__main__":
    sys.exit(main())
