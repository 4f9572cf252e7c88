"""A reproduction whose worker is killed gives the same numbers, bit for bit."""

import json
import os
import signal
from typing import Any

import pytest

from app.specs.experiment import ExperimentSpec
from tests.conftest import Stack
from tests.service.specs import numbers, spec

SPEC: dict[str, Any] = spec(seed=31, epochs=40, images=300, reference=False, defenses=[])


@pytest.fixture(scope="module")
def original(stack: Stack) -> str:
    """A finished experiment."""
    return str(stack.wait(stack.submit(SPEC))["id"])


def test_a_reproduction_uses_no_cached_stage_and_survives_a_kill(stack: Stack, original: str) -> None:
    experiment_id = stack.post(f"/v1/experiments/{original}:reproduce")["id"]

    def is_training() -> bool:
        progress = stack.experiment(experiment_id)["progress"]
        return progress.get("arm") == "undefended" and bool(progress.get("epoch"))

    stack.eventually(is_training, 60, "the undefended arm was not reached")
    os.kill(stack.training_pid(), signal.SIGKILL)
    ended = stack.wait(experiment_id)
    assert [attempt["outcome"] for attempt in ended["attempts"]] == ["lost", "succeeded"]
    text = stack.client.get(f"/v1/experiments/{experiment_id}/logs", headers={"Accept": "text/plain"}).text
    assert "undefended, victim: started" in text
    assert "resumed from a checkpoint" in text
    reproduction = stack.get(f"/v1/experiments/{experiment_id}/reproduction")
    assert reproduction["verdict"] == "agrees", reproduction
    assert reproduction["tolerance"]["fractions"] == 0
    assert reproduction["agreeing"] == len(reproduction["metrics"]) >= 10
    assert numbers(stack.results(experiment_id)) == numbers(stack.results(original))


def test_a_manifest_describes_the_run_completely(stack: Stack, original: str) -> None:
    manifest = stack.get(f"/v1/experiments/{original}/manifest")
    assert ExperimentSpec.model_validate(manifest["spec"]) == ExperimentSpec.model_validate(SPEC)
    assert manifest["spec_hash"] == stack.experiment(original)["spec_hash"]
    assert manifest["device"]["type"] == "cpu"
    assert manifest["device"]["threads"] == 1
    assert {"torch", "numpy", "backdoor-lab"} <= set(manifest["packages"])
    assert len(manifest["data"]["sha256"]) == len(manifest["code"]["sha256"]) == 64
    assert [(stage["kind"], stage["arm"]) for stage in manifest["stages"]] == [
        ("poisoned_set", None),
        ("victim", "undefended"),
    ]
    assert not any(stage["from_store"] for stage in manifest["stages"])
    assert manifest["began_at"] < manifest["ended_at"]
    assert numbers(manifest["results"]) == numbers(stack.results(original))
    artifacts = stack.get(f"/v1/experiments/{original}/artifacts", kind="data")["artifacts"]
    (stored,) = [a for a in artifacts if a["name"] == "manifest.json"]
    content = stack.client.get(stored["content"]).content
    assert json.loads(content) == manifest
