"""Damaged bytes on disk: whatever reads them says so, no number is computed from them, and they can be replaced."""

import gzip
import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from app.core.database import utcnow
from app.experiments import lifecycle
from app.operations.doctor.examination import CHECKS, examine
from app.settings import Settings
from app.specs.experiment import ExperimentSpec
from app.specs.facts import STANDARD_SHA256
from app.specs.stages import plan
from app.tables.artifacts import Artifact
from app.tables.experiments import Experiment, Stage
from tests.app.conftest import Service, serve
from tests.app.sending import sent_dataset
from worker.attempt import run_attempt
from worker.checking import check
from worker.lab.contracts import CanceledError, DatasetDamagedError
from worker.lab.data import datasets, files
from worker.lab.data.importing import import_dataset
from worker.lab.experiment import run_experiment

IMPORTED = {"name": "imported", "key": "toy"}
CLASSES = ("dark", "light")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("home")
    with serve(Settings(home=home, data_dir=home / "data")) as running:
        yield running


def arrays(seed: int = 0, images: int = 40) -> dict[str, Any]:
    """Dark and light pictures, ``[N, C, H, W]``."""
    drawn = np.random.default_rng(seed).integers(0, 100, (images, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(images) % 2
    drawn[labels == 1] += 150
    return {"x_train": drawn, "y_train": labels, "x_test": drawn[:20], "y_test": labels[:20]}


@pytest.fixture
def toy(service: Service) -> Iterator[Path]:
    """The file of a new imported dataset."""
    path = service.settings.datasets / "imported" / "toy.safetensors"
    files.write(path, **arrays(), class_names=CLASSES)
    yield path
    path.unlink()


def spec(dataset: dict[str, Any], seed: int) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "model": {"name": "small_cnn", "width": 4},
        "attack": {"name": "badnets", "size": 2},
        "training": {"epochs": 2, "batch_size": 10},
        "seeds": [seed],
    }


def run(service: Service, experiment_id: str, lab: Callable[..., Any] = run_experiment) -> dict[str, Any]:
    """The experiment after a worker's next attempt at it. What an earlier test left in the queue would come first."""
    for other in service.http.get("/v1/experiments", params={"status": "queued"}).json()["experiments"]:
        if other["id"] != experiment_id:
            service.http.post(f"/v1/experiments/{other['id']}:cancel")
    run_attempt(experiment_id, "host:1:cpu", service.settings, lab)
    return service.get(experiment_id)


def damage(path: Path, tensor: str) -> bytes:
    """Flip every other byte of a tensor in place; returns what the file held."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    first, last = json.loads(content[8:start])[tensor]["data_offsets"]
    changed = bytearray(content)
    changed[start + first : start + last : 2] = bytes(
        255 - byte for byte in changed[start + first : start + last : 2]
    )
    with path.open("r+b") as file:  # the same inode, as bad sectors and stray writes leave it
        file.write(changed)
    return content


def stored_stages(service: Service, experiment_id: str) -> int:
    """How many of the experiment's stages are in the cache."""
    document = service.get(experiment_id)["spec"]
    return int(service.http.post("/v1/experiments:validate", json=document).json()["cached"])


def accuracy(service: Service, experiment_id: str) -> float:
    (arm,) = service.http.get(f"/v1/experiments/{experiment_id}/results").json()["arms"]
    return float(arm["seeds"][0]["clean_accuracy"])


@pytest.mark.parametrize("tensor", ["x_train", "x_test"])
def test_a_damaged_dataset_ends_the_experiment_and_leaves_no_stage(
    service: Service, toy: Path, tensor: str
) -> None:
    seed = files.NAMES.index(tensor)
    experiment_id = service.submit(spec(IMPORTED, seed))["id"]
    sound = damage(toy, tensor)
    failed = run(service, experiment_id)
    assert (failed["status"], failed["error"]["reason"]) == (
        "failed",
        f"dataset: the dataset 'toy' is damaged: {toy} does not hold what was written to it; "
        "get it again with: bdlab data import FILE --name toy",
    )
    assert stored_stages(service, experiment_id) == 0
    toy.write_bytes(sound)
    assert service.http.post(f"/v1/experiments/{experiment_id}:retry").status_code == 202
    assert run(service, experiment_id)["status"] == "succeeded"
    assert stored_stages(service, experiment_id) == 2
    assert accuracy(service, experiment_id) == 1.0


def test_a_file_is_damaged_after_a_process_has_found_it_intact(service: Service, toy: Path) -> None:
    assert files.is_intact(toy)
    damage(toy, "x_test")
    assert not files.is_intact(toy)
    with pytest.raises(DatasetDamagedError):
        files.read(toy)


def test_importing_the_same_source_again_replaces_a_damaged_file(
    service: Service, toy: Path, tmp_path: Path
) -> None:
    content = {name: a[:, 0] if name.startswith("x") else a for name, a in arrays().items()}
    np.savez(tmp_path / "toy.npz", **content, class_names=CLASSES)
    damage(toy, "x_train")
    options: dict[str, Any] = {"built_in": None, "test": None, "test_fraction": None, "size": None}
    import_dataset(
        tmp_path / "toy.npz", service.settings.datasets, key="toy", split_seed=0, replace=False, **options
    )
    assert files.is_intact(toy)


def test_digits_are_compared_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    original = Path(package.origin).parent / "datasets/data/digits.csv.gz"
    copy = tmp_path / "datasets/data/digits.csv.gz"
    copy.parent.mkdir(parents=True)
    text = gzip.decompress(original.read_bytes())
    copy.write_bytes(gzip.compress(text.replace(b"0,0,5,", b"0,0,6,", 1)))
    monkeypatch.setattr(
        datasets, "find_spec", lambda _: SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    )
    for content in (copy.read_bytes(), b"no gzip"):
        copy.write_bytes(content)
        with pytest.raises(DatasetDamagedError, match=f"'digits' is damaged: {copy}"):
            datasets._digits.__wrapped__()


def test_keys_hold_the_content_of_a_built_in_dataset_and_its_random_streams_do_not() -> None:
    parsed = ExperimentSpec.model_validate({"dataset": {"name": "gtsrb"}})
    standard, other = plan(parsed, STANDARD_SHA256["gtsrb"]), plan(parsed, "other content")
    assert plan(parsed) == standard
    assert [stage.stream for stage in standard] == [stage.stream for stage in other]
    assert not {stage.key for stage in standard} & {stage.key for stage in other}


def test_a_worker_with_other_data_than_the_api_corrects_the_keys(service: Service, tmp_path: Path) -> None:
    """The API has no data folder and takes GTSRB for the standard one."""
    folder = service.settings.datasets
    # The precision that auto stands for is part of the keys, and depends on this processor.
    document = {"dataset": {"name": "gtsrb"}, "training": {"precision": "float32"}}
    aside = folder.rename(folder.with_name("aside"))
    try:
        experiment_id = service.submit(document)["id"]
    finally:
        aside.rename(folder)
    _, version = files.write(folder / "gtsrb.safetensors", **arrays(), class_names=CLASSES)
    assert run(service, experiment_id, lambda *_, **__: {})["status"] == "succeeded"
    planned = plan(ExperimentSpec.model_validate(document), version)
    with service.database.reading() as session:
        stages = session.get_one(Experiment, experiment_id).stages or []
    assert [stage["key"] for stage in stages] == [stage.key for stage in planned]
    (folder / "gtsrb.safetensors").unlink()


def test_a_damaged_copy_of_an_upload_is_downloaded_again_and_a_damaged_upload_is_refused(
    service: Service, tmp_path: Path
) -> None:
    dataset_id = sent_dataset(service.http)
    assert check(dataset_id, service.settings) == "ready"
    dataset = {"name": "uploaded", "dataset_id": dataset_id}
    copy = datasets.uploaded_path(dataset_id, service.settings.datasets)
    assert run(service, service.submit(spec(dataset, 0))["id"])["status"] == "succeeded"
    sound = damage(copy, "x_train")
    assert run(service, service.submit(spec(dataset, 1))["id"])["status"] == "succeeded"
    assert copy.read_bytes() == sound
    damage(copy, "y_train")
    service.objects.put(f"uploads/{dataset_id}.safetensors", copy.read_bytes())
    third = service.submit(spec(dataset, 2))["id"]
    failed = run(service, third)
    assert (failed["status"], failed["error"]["reason"]) == (
        "failed",
        f"dataset.dataset_id: the file of dataset {dataset_id} is damaged; upload it again",
    )
    assert stored_stages(service, third) == 0


def add_file(service: Service, data: bytes) -> Artifact:
    digest, key = service.store(data)
    artifact = Artifact(
        experiment_id=service.submit()["id"],
        arm="undefended",
        seed=0,
        name="seed-0/undefended/model.safetensors",
        kind="checkpoint",
        media_type="application/octet-stream",
        size=len(data),
        sha256=digest,
        object_key=key,
        details={},
        created_at=utcnow(),
    )
    service.add(artifact)
    return artifact


def flip_two_bytes(service: Service, key: str) -> None:
    path = Path(service.settings.objects.removeprefix("file://")) / key
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        pair = file.read(2)
        file.seek(-2, 1)
        file.write(bytes(255 - byte for byte in pair))


def test_a_damaged_file_is_not_sent(service: Service) -> None:
    data = bytes(range(256)) * 2000
    artifact = add_file(service, data)
    address = f"/v1/artifacts/{artifact.id}/content"
    link = service.http.get(f"/v1/artifacts/{artifact.id}/link").json()["url"]
    assert service.http.get(address).content == data  # found intact once
    flip_two_bytes(service, artifact.object_key)
    for answer in (
        service.http.get(address),
        service.http.get(address, headers={"Range": "bytes=0-9"}),
        service.http.get(link),
    ):
        assert (answer.status_code, answer.json()["type"]) == (500, "urn:backdoor-lab:problem:damaged")
        assert artifact.sha256 in answer.json()["detail"]
        assert ":retry" in answer.json()["detail"]
        assert "ETag" not in answer.headers
    assert service.http.head(address).status_code == 500
    service.store(data)
    assert service.http.get(address).content == data


def test_an_attempt_that_dies_in_its_report_leaves_no_file_and_no_event_of_its_own(service: Service) -> None:
    """But for the manifest, whose times differ."""
    experiment_id = service.submit(spec({"name": "digits", "train_size": 100, "test_size": 50}, 5))["id"]

    def dies(spec: Any, recorder: Any, store: Any, **options: Any) -> None:
        record = recorder.artifact

        def record_and_die(scope: Any, name: str, *rest: Any) -> None:
            record(scope, name, *rest)
            if name == "manifest.json":
                with service.database.writing() as session:
                    lifecycle.lose(session, experiment_id, 1, "killed")
                raise CanceledError

        recorder.artifact = record_and_die
        run_experiment(spec, recorder, store, **options)

    assert run(service, experiment_id, dies)["status"] == "queued"
    assert run(service, experiment_id)["status"] == "succeeded"
    events = service.http.get(
        f"/v1/experiments/{experiment_id}/events", params={"after": 0, "limit": 1000}
    ).json()["events"]
    names = [event["data"]["name"] for event in events if event["type"] == "artifact"]
    assert [name for name in sorted(set(names)) if names.count(name) > 1] == ["manifest.json"]
    with service.database.reading() as session:
        keys = set(session.scalars(select(Artifact.object_key)))
    assert {key for key in service.objects.list_all() if key.startswith("sha256/")} <= keys


def test_doctor_names_all_that_is_damaged(
    service: Service, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BDLAB_HOME", str(service.settings.home))
    monkeypatch.setenv("BDLAB_DATA_DIR", str(service.settings.datasets))
    for name in set(CHECKS) - {"database"}:
        monkeypatch.delitem(CHECKS, name)

    def findings(verify: bool = True) -> list[tuple[str, str, str]]:
        return [(f.state, f.detail, f.mend) for f in examine(verify=verify) if f.check == "content"]

    assert findings(verify=False) == []
    before = [finding for finding in findings() if finding[0] != "ok"]
    damaged, missing = add_file(service, b"four bytes"), add_file(service, b"none")
    flip_two_bytes(service, damaged.object_key)
    service.objects.delete(missing.object_key)
    stage = Stage(key="b2" * 32, kind="victim", ready_at=utcnow(), sha256="0" * 64, last_used_at=utcnow())
    service.add(stage)
    service.objects.put(f"stages/{stage.key}.safetensors", b"whale")
    damage(toy, "y_test")
    upload_id = sent_dataset(service.http, name="to be damaged")
    assert check(upload_id, service.settings) == "ready"
    service.objects.put(f"uploads/{upload_id}.safetensors", b"\x10" + bytes(30))
    *found, (state, summary, _) = findings()
    assert (state, "are intact" in summary) == ("ok", True)
    errors = {
        detail: mend
        for state, detail, mend in found
        if state == "error" and (state, detail, mend) not in before
    }
    model = "seed-0/undefended/model.safetensors of experiment"
    for detail, mend in {
        f"the file {model} {damaged.experiment_id} is damaged": f"{damaged.experiment_id}:retry",
        f"the file {model} {missing.experiment_id} is missing": f"{missing.experiment_id}:retry",
        f"the dataset 'toy' is damaged: {toy}": "bdlab data import FILE --name toy",
        f"the uploaded dataset {upload_id} is damaged": "upload it again",
    }.items():
        assert mend in errors.pop(detail)
    assert errors == {}
    assert f"the cached stage {stage.key} (victim) is damaged" in [d for s, d, _ in found if s == "warning"]
    service.objects.delete(damaged.object_key)
