"""A dataset that came poisoned on the whole service: the example, and every page and export where numbers are null."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bdlab import Client
from tests.conftest import Stack
from tests.lab.test_given import ABL, npz
from tests.test_docs import ROOT

WITHOUT = ("is_poisoned", "clean_labels", "x_test_triggered", "y_test_triggered")


def test_the_example_defends_what_it_uploads(stack: Stack) -> None:
    script = ROOT / "examples/poisoned_set_of_others.py"
    done = subprocess.run(
        [sys.executable, str(script), stack.url], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr + stack.logs()
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["undefended", "spectral_signatures", "fine_tuning"]
    assert "'isolation_precision'" in lines[1]
    assert "None" not in done.stdout


@pytest.fixture(scope="module")
def unknown(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An ended experiment on a set that says nothing about itself."""
    with Client(stack.url) as client:
        sent = client.datasets.upload(npz(tmp_path_factory.mktemp("given"), *WITHOUT))
        dataset = client.datasets.wait(sent["id"], timeout=60)
        assert dataset["status"] == "ready", dataset["reason"]
        assert "poisoned" not in dataset["facts"]
    spec = {
        "dataset": dataset["dataset"],
        "model": {"name": "small_cnn", "width": 4},
        "attack": {"name": "given"},
        "defenses": [ABL, {"name": "spectral_signatures"}],
        "training": {"epochs": 2, "batch_size": 40},
    }
    return stack.wait(stack.submit(spec))


def test_every_page_and_export_shows_numbers_that_are_null(stack: Stack, unknown: Any) -> None:
    assert unknown["status"] == "succeeded"
    id, dataset = unknown["id"], f"uploaded/{unknown['spec']['dataset']['dataset_id']}"
    results = stack.results(id)
    abl = next(arm for arm in results["arms"] if arm["arm"] == "abl")
    nulls = ("attack_success_rate", "isolation_precision", "isolation_recall", "isolation_auroc")
    assert [abl["seeds"][0][name] for name in nulls] == [None] * 4
    assert not set(nulls) & set(abl["aggregate"])
    assert abl["aggregate"]["clean_accuracy"]["n"] == 1
    other = stack.wait(stack.submit({**unknown["spec"], "defenses": [], "seeds": [1]}))
    both = {"ids": f"{id},{other['id']}"}
    board = {"dataset": dataset, "model": unknown["spec"]["model"]["name"]}
    pages: list[tuple[str, dict[str, Any]]] = [
        (f"/experiments/{id}", {}),
        (f"/experiments/{id}/isolation", {"arm": "abl", "seed": "0"}),
        (f"/experiments/{id}/explore", {}),
        ("/", {}),
        ("/compare", {"ids": [id, other["id"]]}),
        ("/leaderboard", {"board": f"{board['dataset']} {board['model']}"}),
        ("/v1/leaderboard", board),
        ("/v1/leaderboard/pareto", board),
        ("/v1/compare", both),
        ("/v1/results", {"where": f"experiment_id={id}"}),
        *((f"/v1/experiments/{id}/results", {"format": form}) for form in ("csv", "markdown", "latex")),
    ]
    for path, query in pages:
        answer = stack.client.get(path, params=query)
        assert answer.status_code == 200, (path, answer.text[:500])
        assert "NaN" not in answer.text
    overview = stack.client.get(f"/experiments/{id}").text
    assert "Attack success was not measured" in overview
    assert "class None" not in overview
    assert "Apply the trigger" not in stack.client.get(f"/experiments/{id}/explore").text
    with Client(stack.url) as client:
        frame = client.results_frame(id)
        assert frame["attack_success_rate"].isna().all()
        predicted = client.predict(id, index=0)
    assert len(predicted["arms"]) == 3
    refused = stack.client.post(f"/v1/experiments/{id}/predict", json={"index": 0, "triggered": True})
    assert (refused.status_code, "has no trigger" in refused.text) == (422, True)


def test_a_field_that_the_dataset_cannot_fulfil_is_refused_by_name(stack: Stack, unknown: Any) -> None:
    spec = {**unknown["spec"], "attack": {"name": "given", "triggered_test": "dataset"}, "reference": True}
    answer = stack.client.post("/v1/experiments:validate", json=spec)
    assert answer.status_code == 422
    assert {error["field"] for error in answer.json()["errors"]} == {"attack.triggered_test", "reference"}


def test_the_command_imports_what_a_set_says(stack: Stack, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "worker.lab.data",
        "import",
        f"--data-dir={tmp_path}",
        str(npz(tmp_path)),
    ]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"poisoned": 36, "triggered": 120' in done.stdout
    listing = [*command[:3], "list", f"--data-dir={tmp_path}"]
    done = subprocess.run(listing, capture_output=True, text=True, check=False)
    assert (
        "240 training (36 marked as poisoned) and 120 test images, 120 triggered test images" in done.stdout
    )
