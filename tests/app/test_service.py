"""The API as a whole: its documentation, its catalog, its health, and what it costs to import."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from sqlalchemy import inspect

from app.core.database import make_engine, utcnow
from app.core.security import make_signer
from app.operations import schema
from app.settings import Settings
from app.specs.base import canonical_json
from app.specs.facts import BUILT_IN
from app.tables.artifacts import Artifact
from app.tables.experiments import WorkerHeartbeat
from tests.app.conftest import Service
from tests.quick import QUICK

IMPORT = """
import importlib.metadata, sys
import app.main
installed = importlib.metadata.packages_distributions().keys()
print(*sorted({name.partition('.')[0] for name in sys.modules} & installed))
"""
# rich imports attr where it is installed, as it is beside the packages of the tests.
NEEDED = """
PIL annotated_doc annotated_types anyio app attr dotenv fastapi greenlet httpx2 idna obstore opentelemetry
prometheus_client pydantic pydantic_core pydantic_settings pygments python_multipart rich sqlalchemy starlette
structlog typing_extensions typing_inspection
"""


def test_importing_the_api_loads_only_what_it_cannot_do_without() -> None:
    """No torch, no worker, nothing of the client. What is new here costs every start of the API."""
    output = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    loaded = {name for name in output.stdout.split() if not name.startswith("_")}
    assert "fastapi" in loaded
    assert loaded - set(NEEDED.split()) == set()


def test_the_schema_goes_up_and_down(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a%20b.sqlite3'}"
    for _ in range(2):
        schema.upgrade(url)
        schema.upgrade(url)
        engine = make_engine(url)
        assert schema.differences(engine) == []
        with engine.connect() as connection:
            assert schema.revision_of(connection) == schema.head()
        engine.dispose()
        schema.downgrade(url)
        engine = make_engine(url)
        assert inspect(engine).get_table_names() == ["alembic_version"]
        engine.dispose()


def test_several_processes_may_migrate_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'test.sqlite3'}"
    code = f"from app.operations import schema; schema.upgrade({url!r})"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [p.wait(60) for p in processes] == [0, 0, 0]


def test_the_secret_is_made_once_and_kept_private(tmp_path: Path) -> None:
    first = make_signer(Settings(home=tmp_path))
    again = make_signer(Settings(home=tmp_path))
    assert again.fits(b"x", first.sign(b"x"))
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["secret"]
    assert not make_signer(Settings(home=tmp_path, secret="given")).fits(b"x", first.sign(b"x"))


@pytest.fixture(scope="module")
def document(service: Service) -> dict[str, Any]:
    return service.http.get("/openapi.json").json()


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(m, path, op) for path, item in document["paths"].items() for m, op in item.items()]


def test_every_route_is_documented(document: dict[str, Any]) -> None:
    found = operations(document)
    assert len(found) >= 19
    for method, path, operation in found:
        assert operation["summary"], (method, path)
        assert operation["description"], (method, path)
        if "{" in path:
            problem = operation["responses"]["404"]["content"]["application/problem+json"]["schema"]
            assert problem == {"$ref": "#/components/schemas/Problem"}, (method, path)
        if method == "post" and "requestBody" in operation:
            content = operation["requestBody"]["content"]
            content = content.get("application/json") or content["multipart/form-data"]
            assert content["examples"], (method, path)
            assert {"400", "413", "415", "422"} <= set(operation["responses"]), (method, path)
    text = json.dumps(document)
    assert "HTTPValidationError" not in text
    for reference in {r.split('"')[0] for r in text.split("#/components/schemas/")[1:]}:
        assert reference in document["components"]["schemas"]


def test_every_example_works(service: Service, document: dict[str, Any]) -> None:
    """Bodies as given; paths of a real experiment; each query parameter that has an example."""
    expected = {
        "/v1/previews": 503,
        "/v1/experiments/{experiment_id}/predict": 409,
        "/v1/experiments/{experiment_id}/manifest": 404,  # as long as it has not run
        "/v1/experiments/{experiment_id}/reproduction": 404,  # it is none
        "/readyz": 503,
    }
    for method, path, operation in operations(document):
        experiment = service.submit()
        if path.endswith((":retry", ":reproduce")):
            service.end(experiment["id"])
        if {"artifacts", "keys", "uploads", "webhooks"} & set(operation["tags"]):
            continue  # tests/app/test_artifacts.py, test_keys.py, test_uploads.py and test_webhooks.py
        url = path.replace("{experiment_id}", experiment["id"])
        if "{sweep_id}" in path:
            made = service.http.post("/v1/sweeps", json={"grid": {"seeds": [0, 1]}}).json()
            url = path.replace("{sweep_id}", made["id"])
        if "{study_id}" in path:
            made = service.http.post("/v1/studies", json={"attacks": [{"attack": {"name": "sig"}}]}).json()
            url = path.replace("{study_id}", made["id"])
        query = {
            p["name"]: example[0] if isinstance(example := p["schema"]["examples"][0], list) else example
            for p in operation.get("parameters", [])
            if p["in"] == "query" and "examples" in p["schema"]
        }
        if path == "/v1/compare":
            query["ids"] = f"{experiment['id']},{service.submit()['id']}"
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        for example in [e["value"] for e in body.get("examples", {}).values()] or [None]:
            headers = {"Accept": "application/json"}
            answer = service.http.request(method, url, params=query, json=example, headers=headers)
            if path in expected:
                assert answer.status_code == expected[path], (method, path, answer.text)
            else:
                assert answer.is_success, (method, path, answer.text)


def test_the_catalog_lists_everything_with_schema_and_source(service: Service) -> None:
    catalog = service.http.get("/v1/catalog").json()
    names = {kind: [e["name"] for e in entries] for kind, entries in catalog.items()}
    assert {"none", "badnets", "blend", "sig"} <= set(names["attacks"])
    assert "abl" in names["defenses"]
    assert {"digits", "cifar10", "gtsrb", "imported"} <= set(names["datasets"])
    assert {"small_cnn", "resnet18", "preact_resnet18", "wide_resnet_16_1"} <= set(names["models"])
    kinds = {entry["name"]: entry["kind"] for entry in catalog["defenses"]}
    assert kinds["abl"] == "training"
    assert kinds["strip"] == "detection"
    assert kinds["strip_inputs"] == "input_detection"
    blend = next(e for e in catalog["attacks"] if e["name"] == "blend")
    assert blend["schema"]["properties"]["alpha"]["unit"] == "fraction"
    assert blend["defaults"]["alpha"] == 0.2
    assert "Chen" in blend["source"]
    assert "\n" not in blend["summary"]
    digits = next(e for e in catalog["datasets"] if e["name"] == "digits")
    assert digits["present"] is True
    assert sum(digits["facts"]["train_counts"]) == 1437


def test_imported_sets_are_listed_and_usable(service: Service) -> None:
    folder = service.settings.datasets / "imported"
    folder.mkdir(parents=True)
    try:
        facts = BUILT_IN["digits"].model_copy(update={"class_names": tuple("abcdefghij")})
        header = {"facts": canonical_json(facts), "sha256": "f" * 64}
        save_file({"x_test": np.zeros((1, 1, 8, 8), np.uint8)}, folder / "mine.safetensors", metadata=header)
        (folder / "broken.safetensors").write_bytes(b"\xff" * 20)
        datasets = service.http.get("/v1/catalog").json()["datasets"]
        assert [(d["key"], d["facts"]["class_names"][0]) for d in datasets if d["key"]] == [("mine", "a")]
        assert {d["name"]: d["present"] for d in datasets if not d["key"]}["cifar10"] is False
        spec: dict[str, Any] = {"dataset": {"name": "imported", "key": "mine"}}
        assert service.http.post("/v1/experiments:validate", json=spec).status_code == 200
        spec["attack"] = {"name": "badnets", "target_class": 10}
        assert service.http.post("/v1/experiments:validate", json=spec).status_code == 422
        spec["dataset"]["key"] = "broken"
        answer = service.http.post("/v1/experiments:validate", json=spec)
        assert "damaged" in answer.json()["errors"][0]["message"]
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        folder.parent.rmdir()


def test_health(service: Service) -> None:
    assert service.http.get("/healthz").json() == {"status": "ok"}
    service.add(
        WorkerHeartbeat(name="h:1:cpu", queue="cpu", device="cpu", started_at=utcnow(), seen_at=utcnow())
    )
    answer = service.http.get("/readyz")
    assert answer.status_code == 503
    checks = answer.json()["checks"]
    assert {name: check["ok"] for name, check in checks.items()} == {
        "database": True,
        "broker": False,
        "objects": True,
        "worker": True,
        "interactive_worker": False,
        "versions": True,
    }
    assert "h:1:cpu" in checks["worker"]["detail"]
    assert "h:1:cpu runs version unknown, not" in checks["versions"]["detail"]


def test_prometheus_counts_by_route_and_status(service: Service) -> None:
    service.get(service.submit()["id"])
    service.http.get("/nowhere")
    text = service.http.get("/metrics").text
    assert 'route="/v1/experiments/{experiment_id}",status="200"' in text
    assert 'route="unmatched",status="404"' in text
    assert 'bdlab_experiments{status="queued"}' in text
    assert "bdlab_queue_age_seconds" in text
    assert 'bdlab_workers{device="",queue="interactive"} 0.0' in text


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n"
DAMAGED_AVIF = b"\0\0\0\x1cftypavif\0\0\0\0mif1avifmiaf\0\0\0\x08meta"


def png(size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def trained(service: Service) -> str:
    """The link to predict with an experiment that has a model."""
    experiment = service.submit({"seeds": [7]})
    digest, key = service.store(b"weights")
    service.add(
        Artifact(
            experiment_id=experiment["id"],
            arm="undefended",
            seed=7,
            name="seed-7/undefended/model.safetensors",
            kind="checkpoint",
            media_type="application/octet-stream",
            size=7,
            sha256=digest,
            object_key=key,
            details={"backdoored": True},
            created_at=utcnow(),
        )
    )
    return experiment["links"]["predict"]


def test_predicting_checks_what_it_is_given(service: Service, trained: str) -> None:
    def ask(**how: Any) -> tuple[int, str]:
        answer = service.http.post(trained, **how)
        return answer.status_code, answer.json()["detail"]

    assert ask(json={"index": 0, "triggered": True})[0] == 503  # well formed, but there is no worker
    assert ask(files={"image": png()}, data={"triggered": "true"})[0] == 503
    assert ask(data={"index": "3"})[0] == 503
    assert ask(json={"index": 360}) == (422, "index: allowed: 0 to 359")
    assert ask(json={"seed": 1}) == (422, "seed: allowed: 7")
    assert ask(json={"indx": 1})[1].startswith("indx: unknown field")
    assert ask(json={"index": "x"})[0] == 422
    assert ask(content=b"{", headers={"Content-Type": "application/json"})[0] == 400
    assert ask(content=b"[" * 9000, headers={"Content-Type": "application/json"})[0] == 400
    assert ask(content=b"x")[0] == 415
    foreign = (
        "image: the file is not a readable picture; allowed: PNG, JPEG, WebP, BMP, GIF, PPM, PGM and TIFF"
    )
    assert ask(files={"image": b"not an image"}) == (422, foreign)
    assert ask(files={"image": EPS}) == (422, foreign)
    assert ask(files={"image": DAMAGED_AVIF}) == (422, foreign)
    assert ask(files={"image": png()[:40]})[0] == 422
    assert ask(files={"image": png()}, data={"index": "1"}) == (
        422,
        "image: send either an image or an index",
    )
    assert ask(data={"image": "text"})[0] == 422
    assert ask(data={"triggered": "true"})[0] == 422
    assert ask(files={"image": b"x" * 120_000})[0] == 413
    assert ask(files={"image": b"x" * 300_000})[0] == 413
    assert ask(files={"image": png((5000, 4000))}) == (
        413,
        "image: the file is 5000x4000; allowed: at most 4096 pixels a side",
    )


def test_previewing_checks_the_spec(service: Service) -> None:
    for body, field in [
        ({"attack": {"name": "badnets", "target_class": 99}}, "attack.target_class"),
        ({"attack": {"name": "badnets", "size": 9}}, "attack.size"),
        ({"atack": {}}, "atack"),
        ({"seed": -1}, "seed"),
    ]:
        answer = service.http.post("/v1/previews", json=body)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)


@pytest.mark.parametrize(
    "path",
    ["/healthz", "/metrics", "/openapi.json", "/docs", "/nowhere", "/v1/nowhere", "/v1/experiments?limit=x"],
)
def test_answers_outside_of_routes_are_not_stored(service: Service, path: str) -> None:
    answer = service.http.get(path)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    static = service.http.get("/static/base.css")
    assert (static.headers["X-Content-Type-Options"], static.headers["Cache-Control"]) == (
        "nosniff",
        "no-cache",
    )


def test_a_library_that_the_workers_lack_is_named_before_an_experiment_is_stored(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {**QUICK, "model": {"name": "timm", "architecture": "resnet18"}}
    for installed, present, status in (
        ({"torch"}, False, 422),
        ({"torch", "timm"}, True, 200),
        (set(), None, 200),
    ):
        monkeypatch.setattr(
            "app.data.resolve.find_spec", lambda name, known=installed: name if name in known else None
        )
        timm = next(e for e in service.http.get("/v1/catalog").json()["models"] if e["name"] == "timm")
        assert (timm["present"], timm["command"]) == (present, "pip install 'backdoor-lab[timm]'")
        answer = service.http.post("/v1/experiments:validate", json=spec)
        assert answer.status_code == status
        if status == 422:
            assert answer.json()["errors"][0]["field"] == "model.name"
            assert "timm is not installed; get it with: pip install 'backdoor-lab[timm]'" in answer.text
