"""The dashboard's pages without a browser: what they hold, how heavy they are, what they refuse."""

import re
from pathlib import Path
from typing import Any

import pytest

from app.core.database import utcnow
from app.dashboard.filters import METRICS as METRIC_LABELS
from app.dashboard.rendering import STATIC
from app.results.numbers.interpretation import findings
from app.specs.metrics import METRICS
from app.tables.artifacts import Artifact
from app.tables.experiments import WorkerHeartbeat
from app.tables.results import ArmNote
from tests.app.conftest import Service
from tests.app.numbers import arm, done, record
from tests.app.people import people, submitted

HOSTILE = '<script>alert("x")</script>'
NUMBERS = {
    ("undefended", 0): arm(0.98, 1.0),
    ("abl", 0): arm(0.97, 0.01) | {"isolation_precision": 0.9, "isolation_recall": 0.1},
}
SPEC = {"name": HOSTILE, "defenses": [{"name": "abl"}], "tags": {"study": "pages"}}
BUDGET = 200_000


@pytest.fixture(scope="module")
def finished(service: Service) -> Any:
    return done(service, SPEC, NUMBERS)


def paths(experiment_id: str) -> list[str]:
    here = f"/experiments/{experiment_id}"
    return [
        "/",
        "/new",
        "/new/sweep",
        "/new/study",
        f"/new?from={experiment_id}",
        "/new/attack?name=refool",
        "/new/row?name=sig&number=2",
        "/new/defense?name=abl&number=3",
        "/workers",
        "/sweeps",
        "/leaderboard",
        "/leaderboard?board=cifar10+resnet18",
        "/keys",
        "/keys?owner=local",
        "/webhooks",
        here,
        f"{here}/explore",
        "/experiments/unknown",
    ]


def imports(name: str) -> set[str]:
    """The modules that a script imports, directly or not."""
    direct = (
        set(re.findall(r'from "\./([^"]+)"', (STATIC / name).read_text())) if name.endswith(".js") else set()
    )
    return direct.union(*(imports(module) for module in direct))


def test_pages_hold_nothing_inline_and_stay_light(service: Service, finished: Any) -> None:
    for path in paths(finished["id"]):
        answer = service.http.get(path)
        assert answer.headers["content-type"].startswith("text/html"), path
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert HOSTILE not in answer.text
        assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=|https?://", answer.text), path
        files = set(re.findall(r'(?:src|href)="/static/([^"]+)"', answer.text))
        for name in sorted(files):
            files |= imports(name)
        weight = len(answer.content) + sum((STATIC / name).stat().st_size for name in files)
        assert weight < BUDGET, path
        for name in files:
            file = service.http.get(f"/static/{name}")
            assert (file.status_code, file.headers["cache-control"]) == (200, "no-cache")
            same = service.http.get(f"/static/{name}", headers={"If-None-Match": file.headers["etag"]})
            assert same.status_code == 304


def test_every_rule_of_the_style_sheets_is_used() -> None:
    sheets = "".join(path.read_text() for path in STATIC.glob("*.css"))
    folder = STATIC.parent
    files = (*STATIC.glob("*.js"), *folder.glob("*.py"), *folder.glob("templates/*.html"))
    users = "".join(path.read_text() for path in files)
    selectors = re.sub(r"/\*.*?\*/|\{[^{}]*\}", "", sheets, flags=re.DOTALL)
    names = set(re.findall(r"[.#]([a-z][\w-]*)", selectors))
    assert [name for name in sorted(names) if not re.search(rf"\b{name}\b", users)] == []
    defined = set(re.findall(r"^\s*--([\w-]+):", sheets, flags=re.MULTILINE))
    assert set(re.findall(r"var\(--([\w-]+)\)", sheets)) <= defined


def test_an_experiment_says_in_words_what_its_numbers_say(service: Service, finished: Any) -> None:
    text = service.http.get(f"/experiments/{finished['id']}").text
    assert "The attack (badnets) works" in text
    assert "ABL removes the backdoor: attack success is 1.0 %" in text
    assert "accuracy on clean images changes by -1.0 points" in text
    assert "90.0 % are poisoned; they include 10.0 % of all poisoned images" in text
    assert "requires at least three seeds" in text


def test_each_seed_is_shown_and_failed_arms_are_named(service: Service) -> None:
    wild = {("undefended", seed): arm(0.9, success) for seed, success in enumerate((1.0, 0.1, 0.9))}
    made = done(service, SPEC | {"name": "Wild", "seeds": [0, 1, 2]}, wild)
    note = ArmNote(experiment_id=made["id"], arm="abl", seed=2, kind="error", message="loss is nan")
    service.add(note)
    text = service.http.get(f"/experiments/{made['id']}").text
    assert "The seeds disagree about attack success under undefended" in text
    assert "Results of each seed" in text
    assert '<td data-label="Attack success">10.0 %</td>' in text
    assert "seed 2 failed" in text
    assert "abl, seed 2: failed: loss is nan" in text
    assert text.count('<li class="failed">') == 3  # the stages of abl under seed 2


def test_a_page_of_many_seeds_and_files_is_bounded(service: Service) -> None:
    seeds = range(50)
    numbers = {(name, seed): arm(0.9, 0.5) for name in ("clean", "undefended", "abl") for seed in seeds}
    made = done(service, SPEC | {"name": "Long", "reference": True, "seeds": list(seeds)}, numbers)
    png = {"kind": "figure", "media_type": "image/png", "size": 1, "sha256": "0" * 64, "object_key": "none"}
    with service.database.writing() as session:
        session.add_all(
            Artifact(
                experiment_id=made["id"],
                seed=seed,
                name=f"seed-{seed}/{name}.png",
                details={},
                created_at=utcnow(),
                **png,
            )
            for seed in seeds
            for name in ("curves", "samples", "dataset")
        )
    text = service.http.get(f"/experiments/{made['id']}").text
    assert "There are too many seeds to list here" in text
    assert "Figures of 45 more seeds" in text
    assert "The first 100 files;" in text
    assert text.count("<img ") == 5 * 3
    assert len(text) < BUDGET


def test_what_waits_without_a_worker_says_so(service: Service) -> None:
    id = service.submit()["id"]
    text = service.http.get(f"/experiments/{id}").text
    assert "No worker is running" in text
    service.add(
        WorkerHeartbeat(name="w:1:cpu", queue="cpu", device="cpu", started_at=utcnow(), seen_at=utcnow())
    )
    assert "No worker is running" not in service.http.get(f"/experiments/{id}").text
    assert "w:1:cpu" in service.http.get("/workers").text


def test_an_experiment_is_reproduced_and_the_page_tells_how_it_went(service: Service) -> None:
    first = done(service, SPEC, NUMBERS)["id"]
    answer = service.http.post(f"/experiments/{first}/reproduce", follow_redirects=False)
    again = answer.headers["location"]
    assert "It has not finished yet" in service.http.get(again).text
    record(service, again.rpartition("/")[2], NUMBERS)
    service.end(again.rpartition("/")[2])
    assert "The results agree" in service.http.get(again).text
    assert again in service.http.get(f"/experiments/{first}").text


def test_numbers_that_differ_in_a_reproduction_have_their_units(service: Service) -> None:
    first = done(service, SPEC, {("undefended", 0): arm(0.9, 1.0) | {"psnr": 26.0, "ssim": 0.9}})["id"]
    again = service.http.post(f"/v1/experiments/{first}:reproduce").json()["id"]
    record(service, again, {("undefended", 0): arm(0.9, 1.0) | {"psnr": 36.0, "ssim": 0.8}})
    service.end(again)
    text = service.http.get(f"/experiments/{again}").text
    for label, original, reproduced in (("PSNR", "26.0 dB", "36.0 dB"), ("SSIM", "90.0 %", "80.0 %")):
        assert f'<td data-label="Metric">{label}</td><td data-label="Original">{original}</td>' in text
        assert f'<td data-label="Reproduction">{reproduced}</td>' in text


def test_every_metric_has_a_label() -> None:
    assert list(METRIC_LABELS) == list(METRICS)


def test_two_experiments_are_compared(service: Service, finished: Any) -> None:
    other = done(service, SPEC | {"name": "Other", "training": {"epochs": 3}}, {("abl", 0): arm(0.9, 0.5)})
    text = service.http.get("/compare", params={"ids": [finished["id"], other["id"]]}).text
    assert "training.epochs" in text
    assert "attack.name" not in text
    assert "(+49.0 points)" in text
    for ids in (None, finished["id"], [finished["id"]] * 2):
        refused = service.http.get("/compare", params={"ids": ids} if ids else {})
        assert (refused.status_code, "select 2 to 10 experiments" in refused.text) == (422, True)


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/experiments/unknown", 404, "there is no experiment"),
        ("/experiments/unknown/isolation", 404, "there is no experiment"),
        ("/new/attack?name=unknown", 404, "there is no attack"),
        ("/?status=unknown", 422, "allowed: queued, running"),
        ("/?color=red", 422, "color"),
        ("/?tag=-", 422, "allowed: key:value"),
        ("/?cursor=nonsense", 400, "not issued by this service"),
    ],
)
def test_refusals_are_pages(service: Service, path: str, status: int, words: str) -> None:
    answer = service.http.get(path)
    assert answer.status_code == status
    assert answer.headers["content-type"].startswith("text/html")
    assert words in answer.text


def test_the_list_is_paged_and_filtered(service: Service) -> None:
    for number in range(33):
        service.submit({"name": f"100% of page {number}", "attack": {"name": "blend"}})
    first = service.http.get("/?attack=blend").text
    assert first.count('<tr id="e-') == 30
    following = re.search(r'href="(/\?[^"]+cursor=[^"]+)"', first)
    assert following is not None
    rest = service.http.get(following[1].replace("&amp;", "&")).text
    assert rest.count('<tr id="e-') == 3
    assert "Older" not in rest
    assert service.http.get("/?text=PAGE+32").text.count('<tr id="e-') == 1
    assert service.http.get("/?attack=blend&status=failed").text.count('<tr id="e-') == 0


def test_experiments_are_found_by_part_of_their_name(service: Service) -> None:
    wanted = service.submit({"name": "50%_Done ÄRGER"})["id"]
    service.submit({"name": "500 Done"})
    for text in ("50%", "%_d", "DONE Ä"):
        found = service.http.get("/v1/experiments", params={"text": text}).json()["experiments"]
        assert wanted in [one["id"] for one in found], text
        assert "500 Done" not in [one["name"] for one in found], text
    assert service.http.get("/v1/experiments", params={"text": ""}).status_code == 422


def test_buttons_cancel_retry_and_delete(service: Service) -> None:
    id = service.submit()["id"]
    answer = service.http.post(f"/experiments/{id}/cancel", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/experiments/{id}")
    assert service.get(id)["status"] == "canceled"
    assert service.http.post(f"/experiments/{id}/retry", follow_redirects=False).status_code == 303
    assert service.get(id)["status"] == "queued"
    answer = service.http.post(f"/experiments/{id}/delete", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert service.http.get(f"/v1/experiments/{id}").status_code == 404
    assert service.http.post(f"/experiments/{id}/delete", follow_redirects=False).status_code == 404


def test_a_form_on_another_site_changes_nothing(service: Service) -> None:
    id = service.submit()["id"]
    for headers in ({"Origin": "https://elsewhere.example"}, {"Sec-Fetch-Site": "cross-site"}):
        answer = service.http.post(f"/experiments/{id}/cancel", headers=headers, follow_redirects=False)
        assert answer.status_code == 403
    assert service.get(id)["status"] == "queued"


def test_the_form_has_every_field_of_every_attack_defense_model_and_data_set(service: Service) -> None:
    catalog = service.http.get("/v1/catalog").json()
    kinds = {"attack": "attacks", "defense": "defenses", "model": "models", "dataset": "datasets"}
    seen = 0
    for part, kind in kinds.items():
        for entry in catalog[kind]:
            form = service.http.get(f"/new/{part}", params={"name": entry["name"]}).text
            for field, schema in entry["schema"]["properties"].items():
                if field not in ("name", "key"):
                    assert f'data-field="{field}"' in form, (entry["name"], field)
                    assert schema["description"].split(". ")[0][:30].replace("'", "&#39;") in form
                    seen += 1
    assert seen > 200
    assert 'data-field="augmentation.flip"' in service.http.get("/new").text


def test_a_browser_is_asked_for_a_key_and_sees_its_owners_experiments(tmp_path: Path) -> None:
    with people(tmp_path) as made:
        submitted(made.of("ann"), name="Of Ann")
        asked = made.service.http.get("/", headers={"Accept": "text/html"})
        assert asked.status_code == 401
        assert asked.headers["www-authenticate"].startswith("Basic ")
        for owner, rows in (("ann", 1), ("bob", 0)):
            shown = made.service.http.get("/", auth=("anyone", made.key(owner, "read"))).text
            assert shown.count('<tr id="e-') == rows


def read(attack: dict[str, Any], **means: dict[str, float]) -> str:
    arms = [
        {"arm": name, "aggregate": {k: {"mean": v, "n": 3} for k, v in values.items()}}
        for name, values in means.items()
    ]
    return " ".join(finding.text for finding in findings(arms, {"attack": attack, "defenses": []}))


def test_an_input_detection_is_read_by_what_it_flags() -> None:
    arms = [
        {"arm": name, "aggregate": {k: {"mean": v, "n": 3} for k, v in values.items()}}
        for name, values in {
            "undefended": {"clean_accuracy": 0.9, "attack_success_rate": 1.0},
            "strip_inputs": {
                "clean_accuracy": 0.9,
                "attack_success_rate": 1.0,
                "input_auroc": 0.98,
                "input_true_positive_rate": 0.95,
                "input_false_positive_rate": 0.06,
            },
        }.items()
    ]
    document = {"attack": {"name": "badnets", "target_class": 0}, "defenses": [{"name": "strip_inputs"}]}
    said = [finding for finding in findings(arms, document) if "strip_inputs" in finding.text]
    assert [finding.tone for finding in said] == ["good"]  # and not that it leaves the backdoor
    assert "flags 95.0 % of the triggered test images and 6.0 % of the clean ones" in said[0].text
    for name in ("input_auroc", "input_true_positive_rate"):
        del arms[1]["aggregate"][name]
    said = [finding for finding in findings(arms[1:], document) if "strip_inputs" in finding.text]
    assert [(finding.tone, "flags 6.0 % of the clean ones" in finding.text) for finding in said] == [
        ("note", True)
    ]


def test_other_attacks_are_read_by_what_they_aim_at() -> None:
    on_one = {"name": "poison_frogs", "target_class": 6}
    said = read(on_one, undefended={"clean_accuracy": 0.9, "target_image_hit": 1.0})
    assert "has a single target image, which is classified as class 6 in 100.0 % of the runs" in said
    cyclic = {"name": "badnets", "target_class": 0, "label_mode": "all_to_all"}
    weak = {"clean_accuracy": 0.9, "attack_success_rate": 0.2}
    said = read(cyclic, undefended=weak, clean={"clean_accuracy": 0.95})
    assert "does not work well" in said
    assert "classified as the class after their own" in said
    assert "changes that by -5.0 points" in said
    assert "means over 3 seeds" in said
    assert read({"name": "none"}, clean={"clean_accuracy": 0.9}) == (
        "Numbers are means over 3 seeds with their 95 % interval."
    )
