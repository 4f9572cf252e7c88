"""What housekeeping and a worker do to each other."""

import os
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

import worker.recorder as recording
from app.core.database import new_id, utcnow
from app.core.objects import Objects, put_content
from app.settings import Settings
from app.tables.artifacts import Artifact
from app.tables.experiments import Stage
from app.tables.reproductions import Reproduction
from tests.worker.conftest import House
from worker.housekeeping import GRACE, collect_fetched_datasets
from worker.lab.contracts import Scope


def tells(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
    scope = Scope("undefended", 0, "victim")
    recorder.artifact(scope, "model.safetensors", "checkpoint", "application/octet-stream", b"weights", {})
    recorder.result(scope, {"clean_accuracy": 0.9})
    return {}


def test_a_file_that_retention_let_go_is_there_again_after_a_retry(house: House) -> None:
    mine = house.submit()

    def dies(*arguments: Any, **options: Any) -> dict[str, Any]:
        tells(*arguments, **options)
        with house.database.writing() as session:
            session.execute(update(Artifact).values(expired_at=utcnow(), expired_why="old"))
        for row in house.rows(Artifact, mine):
            house.objects.delete(row.object_key)
        return tells(*arguments, **options)

    assert house.try_(mine, dies) == "succeeded"
    (row,) = house.rows(Artifact, mine)
    assert (row.expired_at, row.expired_why) == (None, None)
    assert house.objects.get(row.object_key) == b"weights"


def test_a_file_that_housekeeping_deletes_before_its_row_is_there_is_written_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(objects: Objects, data: bytes) -> tuple[str, str]:
        digest, key = put_content(objects, data)
        objects.delete(key)
        monkeypatch.setattr(recording, "put_content", put_content)
        return digest, key

    monkeypatch.setattr(recording, "put_content", put)
    mine = house.submit()
    assert house.try_(mine, tells) == "succeeded"
    (row,) = house.rows(Artifact, mine)
    assert house.objects.get(row.object_key) == b"weights"


def test_stages_of_a_reproduction_say_whose_they_are(house: House) -> None:
    mine = house.submit()

    def computes(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        with store.claim("a" * 64, "victim"):
            store.save("a" * 64, "victim", b"weights")
        return tells(spec, recorder, store)

    with house.database.writing() as session:
        session.add(Reproduction(experiment_id=mine, original_id=new_id()))
    assert house.try_(mine, computes) == "succeeded"
    other = house.submit(seeds=[5])
    assert house.try_(other, computes) == "succeeded"
    with house.database.reading() as session:
        owners = session.execute(select(Stage.experiment_id, Stage.key)).all()
    assert {row.experiment_id for row in owners} == {mine, None}
    assert [row.experiment_id for row in owners if row.key == "a" * 64] == [None]


def test_a_worker_deletes_what_it_fetched_of_uploads_that_are_gone(house: House, tmp_path: Path) -> None:
    settings = Settings(**house.settings.model_dump() | {"data_dir": tmp_path})
    folder = settings.datasets / "uploaded"
    folder.mkdir()
    files = [folder / f"{new_id()}.safetensors", folder / ".fetch-abc", folder / "notes.txt"]
    fresh = folder / f"{new_id()}.safetensors"
    for path in (*files, fresh):
        path.write_bytes(b"x")
    for path in files:
        os.utime(path, ((utcnow() - 2 * GRACE).timestamp(),) * 2)
    collect_fetched_datasets(settings)
    assert [path.exists() for path in (*files, fresh)] == [False, False, True, True]
