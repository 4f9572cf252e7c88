"""Uploads on the whole service: the documented examples, a round trip, killed processes."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bdlab import Client
from tests.app.sending import pictures, weights
from tests.conftest import BDLAB, Stack
from tests.processes import descendants
from tests.quick import QUICK
from tests.service.specs import numbers
from tests.test_docs import EXAMPLES, blocks

LIGHT = {**QUICK, "seeds": [0], "defenses": []}


def test_the_documented_curl_examples_work(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    for example in EXAMPLES:
        (tmp_path / "examples" / example.name).write_text(json.dumps(LIGHT))
    script = "\n".join(text for name, text in blocks("bash") if name == "uploads.md" and "curl" in text)
    assert script.count("curl") > 12
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace("http://127.0.0.1:8000", stack.url)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr + stack.logs()
    assert "fine_tuning" in done.stdout
    assert '"class_names":["dark","light"]' in done.stdout


@pytest.fixture(scope="module")
def trained(stack: Stack) -> Any:
    return stack.wait(stack.submit(LIGHT))


def test_an_uploaded_checkpoint_is_the_model_that_was_trained(
    stack: Stack, trained: Any, tmp_path: Path
) -> None:
    with Client(stack.url) as client:
        [file] = client.artifacts(trained["id"], kind="checkpoint", arm="undefended", seed=0)
        path = client.download(file, tmp_path / "model.safetensors")
        model = client.models.wait(client.models.upload(path)["id"], timeout=60)
        assert (model["status"], model["model"], model["labels"]["backdoored"]) == (
            "ready",
            {"name": "small_cnn", "width": 4},
            "true",
        )
        tuning = {"name": "fine_tuning", "steps": 4, "clean_ratio": 0.1}
        # The recipe is part of the stage's key, and no other test has this one.
        recipe = {"epochs": 2, "batch_size": 40}
        spec = {**LIGHT, "training": recipe, "defenses": [tuning], "victim": {"model_id": model["id"]}}
        repaired = stack.wait(stack.submit(spec))
        before, after = numbers(stack.results(trained["id"])), numbers(stack.results(repaired["id"]))
        of_victim = {key: value for key, value in after.items() if key[0] == "undefended"}
        assert of_victim
        assert of_victim == {key: before[key] for key in of_victim}
        assert ("fine_tuning", 0, "clean_accuracy") in after
        log = [line["message"] for line in client.logs(repaired["id"])]
        # Only the first line: an attempt after a lost lease takes the stage from the cache.
        assert "started" in next(line for line in log if "undefended, victim" in line), "the file was used"
        predicted = client.predict(repaired["id"], index=0, triggered=True)
        assert [arm["arm"] for arm in predicted["arms"]] == ["undefended", "fine_tuning"]


def test_an_uploaded_dataset_is_downloaded_and_trained_on(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "toy.npz").write_bytes(pictures())
    sent = subprocess.run(
        [BDLAB, "datasets", "upload", str(tmp_path / "toy.npz"), "--json", "--url", stack.url],
        capture_output=True,
        text=True,
        check=False,
    )
    assert sent.returncode == 0, sent.stderr + stack.logs()
    dataset = json.loads(sent.stdout)
    assert dataset["facts"]["train_counts"] == [20, 20]
    spec = {
        "dataset": {"name": "uploaded", "dataset_id": dataset["id"]},
        "model": {"name": "small_cnn", "width": 4},
        "attack": {"name": "badnets", "size": 2},
        "training": {"epochs": 1, "batch_size": 10},
    }
    done = stack.wait(stack.submit(spec))
    data_dir = Path(stack.environment.get("BDLAB_DATA_DIR", stack.home / "data"))
    assert (data_dir / "uploaded" / f"{dataset['id']}.safetensors").is_file()
    preview = stack.client.post("/v1/previews", json={"dataset": spec["dataset"], "attack": spec["attack"]})
    assert preview.content.startswith(b"\x89PNG")
    refused = subprocess.run(
        [BDLAB, "datasets", "delete", dataset["id"], "--url", stack.url],
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    named = re.search(r"experiment (\S+);", refused.stderr)  # another test may have uploaded the same content
    assert named is not None, refused.stderr
    assert stack.experiment(named[1])["spec"]["dataset"] == done["spec"]["dataset"]


def test_the_command_prints_why_a_model_is_refused(stack: Stack, tmp_path: Path) -> None:
    def bdlab(*words: str) -> subprocess.CompletedProcess[str]:
        command = [BDLAB, "models", *words, "--url", stack.url]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    (tmp_path / "mine.safetensors").write_bytes(weights(1))
    done = bdlab("upload", "mine.safetensors", "--model", "small_cnn", "--shape", "1x8x8", "--classes", "10")
    assert (done.returncode, "has the shape" in done.stderr) == (2, True), done.stderr
    model = '{"name": "small_cnn", "width": 4}'
    done = bdlab("upload", "mine.safetensors", "--model", model, "--dataset", "digits")
    assert done.returncode == 0, done.stderr
    model_id = done.stdout.strip()
    assert model_id in bdlab("list", "--status", "ready").stdout
    assert "parameters: 1702" in bdlab("show", model_id).stdout
    assert bdlab("delete", model_id).returncode == 0
    assert bdlab("show", model_id).returncode == 4
    assert "an example is --shape" in bdlab("upload", "mine.safetensors", "--shape", "8x8").stderr


def test_a_check_survives_kill_9_of_relay_and_worker(stack: Stack) -> None:
    os.kill(stack.pid("relay"), signal.SIGKILL)  # so that the upload is committed but not published
    with Client(stack.url) as client:
        path = stack.home / "kill.safetensors"
        path.write_bytes(weights(2))
        model = client.models.upload(
            path, model={"name": "small_cnn", "width": 4}, dataset={"name": "digits"}
        )
        os.kill(stack.pid("checks"), signal.SIGKILL)
        assert client.models.wait(model["id"], timeout=60)["status"] == "ready"
    assert len(descendants(stack.pid("checks"))) <= 1
