"""The isolation page, with handwritten files: verdict, estimates and scores of classes."""

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import expect

from app.core.database import utcnow
from app.settings import Settings
from app.tables.artifacts import Artifact
from app.tables.experiments import Experiment
from tests.app.conftest import Service, serve
from tests.app.numbers import arm, done
from tests.dashboard.conftest import Tab

OpenTab = Callable[..., Tab]
BELIEF = {
    "believes": {
        "poisoned": True,
        "target_class": 3,
        "poisoning_rate": 0.2,
        "target_classes": [3],
        "not_judged": [],
        "power": [
            {"trigger": "patch", "share": 1 / 3, "noticed": True},
            {"trigger": "warp", "share": 0.1, "noticed": False},
        ],
        "removal_tests": [
            {
                "images": 4,
                "poison": True,
                "label": 3,
                "unexplained": True,
                "known": 0.07,
                "known_held_out": 0.93,
            },
            {
                "images": 6,
                "poison": False,
                "label": 5,
                "unexplained": False,
                "known": 0.91,
                "known_held_out": 0.95,
            },
        ],
    },
    "truth": {"poisoned": True, "target_class": 0, "poisoning_rate": 0.2},
}
VERDICT = "index,label,suspicion,isolated,is_poisoned\n" + "".join(
    f"{index},{index % 10},{1 - index / 20},{int(index < 4)},{int(index in (0, 1, 2, 7))}\n"
    for index in range(20)
)
ISOLATION = (
    VERDICT.replace("is_poisoned\n", "is_poisoned,loss\n")
    .replace("0\n", "0,0.5\n")
    .replace("1\n", "1,0.01\n")
)
CLASSES = "class,mask_norm,anomaly_index,flagged\n0,4.5,1.6,0\n3,1.25,2.4,1\n"


def sheet() -> bytes:
    """Twenty images of 8 x 8 pixels in two rows."""
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((80, 16)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("isolation")
    with serve(Settings(home=home, data_dir=home / "data", interactive_timeout=0.2)) as running:
        yield running


@pytest.fixture(scope="module")
def page_of(service: Service) -> str:
    """The page of an experiment whose files have the truth."""
    return make_page(service, VERDICT, ISOLATION, BELIEF)


@pytest.fixture(scope="module")
def page_without_truth(service: Service) -> str:
    """The page of a dataset that came poisoned and does not say what is."""
    verdict, isolation = (
        "".join(drop_column(line, 4) for line in text.splitlines(keepends=True))
        for text in (VERDICT, ISOLATION)
    )
    page = make_page(service, verdict, isolation, {**BELIEF, "truth": None})
    with service.database.writing() as session:
        stored = session.get_one(Experiment, page.split("/")[2])
        stored.spec = {**stored.spec, "attack": {"name": "given", "target_class": None}}
    return page


def drop_column(line: str, place: int) -> str:
    cells = line.rstrip("\n").split(",")
    return ",".join(cells[:place] + cells[place + 1 :]) + "\n"


def make_page(service: Service, verdict: str, isolation: str, belief: dict[str, Any]) -> str:
    spec = {"defenses": [{"name": "abl_plus"}, {"name": "neural_cleanse"}]}
    made = done(
        service, spec, {(name, 0): arm(0.9, 0.5) for name in ("undefended", "abl_plus", "neural_cleanse")}
    )
    files = {
        ("abl_plus", "verdict.csv"): verdict.encode(),
        ("abl_plus", "verdict_images.png"): sheet(),
        ("abl_plus", "isolation.csv"): isolation.encode(),
        ("abl_plus", "belief.json"): json.dumps(belief).encode(),
        ("neural_cleanse", "classes.csv"): CLASSES.encode(),
    }
    for (name, file), data in files.items():
        digest, key = service.store(data)
        picture = {"columns": 10, "height": 8, "width": 8}
        service.add(
            Artifact(
                experiment_id=made["id"],
                name=f"seed-0/{name}/{file}",
                arm=name,
                seed=0,
                kind="data",
                media_type="image/png" if file.endswith("png") else "text/plain",
                size=len(data),
                sha256=digest,
                object_key=key,
                details=picture if file.endswith("png") else {},
                created_at=utcnow(),
            )
        )
    return f"/experiments/{made['id']}/isolation"


def test_a_verdict_is_shown_with_estimates_and_truth(
    open_tab: OpenTab, service: Service, page_of: str
) -> None:
    tab = open_tab(service.url)
    page = tab.open(page_of)
    expect(page.locator("#message")).to_contain_text(
        "4 of 20 training images were isolated; 3 of these are poisoned"
    )
    belief = page.locator("#belief")
    expect(belief.get_by_role("row", name="Which class is the target?")).to_contain_text("3 (wrong)")
    expect(belief.get_by_role("row", name="What is the poisoning rate?")).to_contain_text("20.0 % (correct)")
    expect(belief).to_contain_text("4 images of 3, found to be poison")
    expect(belief).not_to_contain_text("6 images of 5")  # its sides explain each other
    expect(belief.get_by_role("row", name="A patch on 33.3 % of a class would be noticed")).to_contain_text(
        "yes"
    )
    expect(belief.get_by_role("row", name="A warp on 10.0 % of a class would be noticed")).to_contain_text(
        "no"
    )
    expect(page.locator("#thumbs li")).to_have_count(20)
    for which, index in (("poisoned, not isolated", "#7,"), ("clean, isolated", "#3,")):
        page.locator("#filter").select_option(which)
        expect(page.locator("#thumbs li")).to_have_count(1)
        expect(page.locator("#thumbs li")).to_contain_text(index)
    assert tab.accessibility() == []
    page.get_by_role("link", name="Isolation (first stage)").click()
    expect(page.get_by_role("img", name="Histogram of loss")).to_be_visible()
    assert tab.errors == []


def test_scores_of_classes_are_shown_with_the_truth(
    open_tab: OpenTab, service: Service, page_of: str
) -> None:
    tab = open_tab(service.url)
    page = tab.open(f"{page_of}?arm=neural_cleanse")
    classes = page.locator("#classes")
    expect(classes.get_by_role("row", name="0 4.5")).to_contain_text("the target")
    expect(classes.get_by_role("row", name="3 1.25")).to_contain_text("flagged")
    assert tab.accessibility() == []
    assert tab.errors == []


def test_what_is_not_known_is_said_to_be_so(
    open_tab: OpenTab, service: Service, page_without_truth: str
) -> None:
    tab = open_tab(service.url)
    page = tab.open(page_without_truth)
    expect(page.locator("#message")).to_have_text(
        "4 of 20 training images were isolated. It is not known which images are poisoned."
    )
    belief = page.locator("#belief")
    expect(belief.get_by_role("row", name="Which class is the target?")).to_contain_text("3")
    expect(belief.get_by_role("row", name="Which class is the target?")).to_contain_text("not known")
    expect(page.locator("#thumbs li")).to_have_count(20)
    expect(page.locator("#thumbs strong")).to_have_count(0)
    expect(page.locator("#filter")).to_be_hidden()
    assert tab.accessibility() == []
    page.get_by_role("link", name="Isolation (first stage)").click()
    expect(page.get_by_role("img", name="Histogram of loss")).to_be_visible()
    expect(page.get_by_role("img", name="recall")).to_have_count(0)
    page = tab.open(f"{page_without_truth}?arm=neural_cleanse")
    expect(page.locator("#classes").get_by_role("row", name="3 1.25")).to_contain_text("not known")
    assert tab.errors == []
