"""The lab without the service, on folders."""

import json
import os
import subprocess
import sys
from pathlib import Path

from worker.lab.local import FolderStore

SPEC = {"dataset": {"name": "digits", "train_size": 300}, "training": {"epochs": 2}}


def test_processes_share_a_folder_of_stages_and_compute_each_once(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    outs = [tmp_path / name for name in ("one", "two")]
    runs = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "worker.lab", tmp_path / "spec.json"),
                *("--out", out, "--cache", tmp_path / "stages"),
            ]
        )
        for out in outs
    ]
    assert [run.wait(timeout=120) for run in runs] == [0, 0]
    log = "".join((out / "log.txt").read_text() for out in outs)
    for stage in ("poisoned_set", "victim"):
        assert log.count(f"{stage}: done in") == 1
        assert log.count(f"{stage}: taken from the cache") == 1
    arms = [json.loads((out / "results.json").read_text())["arms"] for out in outs]
    assert arms[0] == arms[1]
    assert sorted({path.suffix for path in (tmp_path / "stages").iterdir()}) == [".stage"]


def test_a_damaged_file_counts_as_never_written(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    for save, load, suffix in (
        (lambda: store.save("key", "victim", b"whole"), store.load, "stage"),
        (lambda: store.save_checkpoint("key", b"whole"), store.load_checkpoint, "checkpoint"),
    ):
        assert load("key") is None
        save()
        assert load("key") == b"whole"
        path = tmp_path / f"key.{suffix}"
        for damaged in (path.read_bytes()[:-1], b"", path.read_bytes()[:-1] + b"?"):
            path.write_bytes(damaged)
            assert load("key") is None


def test_waiting_threads_spin_for_a_moment_unless_the_user_says_otherwise() -> None:
    """OpenMP's default, to spin until it is their turn, is forty times slower beside another busy process."""
    default, active, long = ("PASSIVE", "1000"), ("ACTIVE", None), (None, "5000")
    for variables, expected in (
        ({}, default),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, active),
        ({"GOMP_SPINCOUNT": "5000"}, long),
    ):
        names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
        environment = {name: value for name, value in os.environ.items() if name not in names}
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                f"import sys, os, worker.tasks; print('torch' in sys.modules, *map(os.environ.get, {names}))",
            ],
            env=environment | variables,
            capture_output=True,
            text=True,
            check=True,
        )
        # torch reads it, and the parent, which forks, must not import torch
        assert done.stdout.split() == ["False", *map(str, expected)]
