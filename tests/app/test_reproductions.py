"""Manifests, and whether numbers hold when they are computed afresh."""

import json
from copy import deepcopy
from typing import Any

import pytest

from app.core.database import utcnow
from app.specs.experiment import ExperimentSpec
from app.tables.artifacts import Artifact
from tests.app.conftest import Service
from tests.app.numbers import done, record

SPEC = {"name": "original", "seeds": [0], "tags": {"study": "reproduce"}}
NUMBERS = {
    ("undefended", 0): {
        "clean_accuracy": 0.9,
        "attack_success_rate": 1.0,
        "clean_loss": 0.5,
        "psnr": None,
        "seconds": 3.0,
    }
}
MANIFEST = {
    "device": {"type": "cpu", "name": "a processor", "threads": 2, "bfloat16": False, "compile": False},
    "packages": {"torch": "2.13.0", "numpy": "2.4.0"},
    "code": {"lab_version": 1, "sha256": "c0de"},
    "data": {"name": "digits", "sha256": "da7a"},
}


def keep(service: Service, experiment_id: str, manifest: dict[str, Any]) -> bytes:
    """Store a manifest as a worker does."""
    data = json.dumps(manifest).encode()
    digest, key = service.store(data)
    service.add(
        Artifact(
            experiment_id=experiment_id,
            name="manifest.json",
            kind="data",
            media_type="application/json",
            size=len(data),
            sha256=digest,
            object_key=key,
            details={},
            created_at=utcnow(),
        )
    )
    return data


def again(service: Service, original: str, numbers: Any, manifest: dict[str, Any] | None) -> dict[str, Any]:
    """Reproduce, play the worker, and return how it compares."""
    answer = service.http.post(f"/v1/experiments/{original}:reproduce")
    assert answer.status_code == 202, answer.text
    made = answer.json()
    link = answer.headers["Location"]
    assert service.http.get(link).json()["verdict"] == "pending"
    record(service, made["id"], numbers)
    if manifest is not None:
        keep(service, made["id"], manifest)
    service.end(made["id"])
    return service.http.get(link).json()


@pytest.fixture
def original(service: Service) -> str:
    made = done(service, SPEC, NUMBERS)
    keep(service, made["id"], MANIFEST)
    return made["id"]


def changed(metric: str, value: float | None) -> Any:
    return {("undefended", 0): {**NUMBERS["undefended", 0], metric: value}}


def test_on_the_same_cpu_only_the_same_bits_agree(service: Service, original: str) -> None:
    same = again(service, original, changed("seconds", 99.0), MANIFEST)
    assert (same["verdict"], same["agreeing"], same["environment"]) == ("agrees", 4, [])
    assert same["reproduces"] == original
    assert same["tolerance"]["fractions"] == same["tolerance"]["others"] == 0
    assert {metric["metric"] for metric in same["metrics"]} == {
        "attack_success_rate",
        "clean_accuracy",
        "clean_loss",
        "psnr",
    }
    off = again(service, original, changed("clean_accuracy", 0.9000001), MANIFEST)
    assert (off["verdict"], off["agreeing"]) == ("differs", 3)
    (metric,) = [metric for metric in off["metrics"] if not metric["agrees"]]
    assert (metric["metric"], metric["original"]) == ("clean_accuracy", 0.9)
    assert metric["difference"] == pytest.approx(1e-7)
    listed = service.http.get(f"/v1/experiments/{original}/reproductions").json()["reproductions"]
    assert [one["experiment_id"] for one in listed] == [off["experiment_id"], same["experiment_id"]]


def test_elsewhere_close_numbers_agree_and_the_reason_is_told(service: Service, original: str) -> None:
    elsewhere = deepcopy(MANIFEST)
    elsewhere["packages"]["torch"] = "2.14.0"
    close = again(service, original, changed("clean_accuracy", 0.915), elsewhere)
    assert close["verdict"] == "agrees"
    assert close["environment"] == [{"field": "packages.torch", "original": "2.13.0", "again": "2.14.0"}]
    assert "packages.torch" in close["tolerance"]["reason"]
    assert again(service, original, changed("clean_accuracy", 0.925), elsewhere)["verdict"] == "differs"
    assert again(service, original, changed("clean_loss", 0.52), elsewhere)["verdict"] == "agrees"
    assert again(service, original, changed("clean_loss", 0.55), elsewhere)["verdict"] == "differs"
    assert again(service, original, changed("psnr", 30.0), elsewhere)["verdict"] == "differs"
    unknown = again(service, original, changed("clean_accuracy", 0.91), None)
    assert unknown["verdict"] == "agrees"
    assert "manifest is missing" in unknown["tolerance"]["reason"]


def test_an_arm_that_is_missing_does_not_agree(service: Service, original: str) -> None:
    found = again(service, original, {("clean", 0): {"clean_accuracy": 0.9}}, MANIFEST)
    assert (found["verdict"], found["agreeing"]) == ("differs", 0)


def test_a_reproduction_is_the_same_spec_and_a_repeated_request_makes_one(
    service: Service, original: str
) -> None:
    key = {"Idempotency-Key": f"reproduce {original}"}
    first, second = (
        service.http.post(f"/v1/experiments/{original}:reproduce", headers=key) for _ in range(2)
    )
    assert first.json()["id"] == second.json()["id"] != original
    assert second.headers["Idempotency-Replayed"] == "true"
    assert ExperimentSpec.model_validate(first.json()["spec"]) == ExperimentSpec.model_validate(SPEC)
    failed = first.json()["id"]
    service.end(failed, "failed", "out of memory")
    assert service.http.get(f"/v1/experiments/{failed}/reproduction").json()["verdict"] == "unknown"


def test_what_is_known_of_a_reproduction_outlives_its_original(service: Service, original: str) -> None:
    found = again(service, original, NUMBERS, MANIFEST)
    assert service.http.delete(f"/v1/experiments/{original}").status_code == 204
    left = service.http.get(f"/v1/experiments/{found['experiment_id']}/reproduction").json()
    assert (left["verdict"], left["reproduces"]) == ("unknown", original)


def test_what_cannot_be_reproduced_is_refused_with_the_reason(service: Service, original: str) -> None:
    queued = service.submit(SPEC)["id"]
    refused = service.http.post(f"/v1/experiments/{queued}:reproduce")
    assert refused.status_code == 409
    assert "only one that succeeded" in refused.json()["detail"]
    assert service.http.post("/v1/experiments/nothing:reproduce").status_code == 404
    none = service.http.get(f"/v1/experiments/{original}/reproduction")
    assert none.status_code == 404
    assert ":reproduce" in none.json()["detail"]
    for part in ("reproduction", "reproductions", "manifest"):
        assert service.http.get(f"/v1/experiments/nothing/{part}").status_code == 404


def test_the_manifest_is_the_stored_file(service: Service, original: str) -> None:
    answer = service.http.get(f"/v1/experiments/{original}/manifest")
    assert answer.json() == MANIFEST
    assert answer.content == json.dumps(MANIFEST).encode()
    queued = service.submit(SPEC)["id"]
    missing = service.http.get(f"/v1/experiments/{queued}/manifest")
    assert missing.status_code == 404
    assert "queued" in missing.json()["detail"]
