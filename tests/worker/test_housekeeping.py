"""Interaction of workers and housekeeping."""

import os
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

import worker.recorder as recorder_module
from app.core.database import new_id, utcnow
from app.core.objects import Objects, put_content
from app.settings import Settings
from app.tables.artifacts import Artifact
from app.tables.experiments import Stage
from app.tables.reproductions import Reproduction
from tests.worker.conftest import Backends
from worker.housekeeping import GRACE, collect_fetched_datasets
from worker.lab.contracts import Scope


def report(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
    scope = Scope("undefended", 0, "victim")
    recorder.artifact(scope, "model.safetensors", "checkpoint", "application/octet-stream", b"weights", {})
    recorder.result(scope, {"clean_accuracy": 0.9})
    return {}


def test_a_retry_stores_an_expired_file_again(backends: Backends) -> None:
    experiment_id = backends.submit()

    def dies(*arguments: Any, **options: Any) -> dict[str, Any]:
        report(*arguments, **options)
        with backends.database.writing() as session:
            session.execute(update(Artifact).values(expired_at=utcnow(), expired_why="old"))
        for row in backends.rows(Artifact, experiment_id):
            backends.objects.delete(row.object_key)
        return report(*arguments, **options)

    assert backends.run_attempt(experiment_id, dies) == "succeeded"
    (row,) = backends.rows(Artifact, experiment_id)
    assert (row.expired_at, row.expired_why) == (None, None)
    assert backends.objects.get(row.object_key) == b"weights"


def test_a_content_deleted_before_its_row_is_written_is_stored_again(
    backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(objects: Objects, data: bytes) -> tuple[str, str]:
        digest, key = put_content(objects, data)
        objects.delete(key)
        monkeypatch.setattr(recorder_module, "put_content", put_content)
        return digest, key

    monkeypatch.setattr(recorder_module, "put_content", put)
    experiment_id = backends.submit()
    assert backends.run_attempt(experiment_id, report) == "succeeded"
    (row,) = backends.rows(Artifact, experiment_id)
    assert backends.objects.get(row.object_key) == b"weights"


def test_stages_of_a_reproduction_name_their_experiment(backends: Backends) -> None:
    experiment_id = backends.submit()

    def computes(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        with store.claim("a" * 64, "victim"):
            store.save("a" * 64, "victim", b"weights")
        return report(spec, recorder, store)

    with backends.database.writing() as session:
        session.add(Reproduction(experiment_id=experiment_id, original_id=new_id()))
    assert backends.run_attempt(experiment_id, computes) == "succeeded"
    other = backends.submit(seeds=[5])
    assert backends.run_attempt(other, computes) == "succeeded"
    with backends.database.reading() as session:
        owners = session.execute(select(Stage.experiment_id, Stage.key)).all()
    assert {row.experiment_id for row in owners} == {experiment_id, None}
    assert [row.experiment_id for row in owners if row.key == "a" * 64] == [None]


def test_a_worker_deletes_datasets_whose_uploads_are_deleted(backends: Backends, tmp_path: Path) -> None:
    settings = Settings(**backends.settings.model_dump() | {"data_dir": tmp_path})
    folder = settings.datasets / "uploaded"
    folder.mkdir()
    files = [folder / f"{new_id()}.safetensors", folder / ".fetch-abc", folder / "notes.txt"]
    recent = folder / f"{new_id()}.safetensors"
    for path in (*files, recent):
        path.write_bytes(b"x")
    for path in files:
        os.utime(path, ((utcnow() - 2 * GRACE).timestamp(),) * 2)
    collect_fetched_datasets(settings)
    assert [path.exists() for path in (*files, recent)] == [False, False, True, True]
