"""Training time on all processors, alone and with CPU contention, by how long waiting OpenMP threads spin.

``python benchmarks/contended.py``; one minute on two processors. Workers use 1,000 turns.
"""

import multiprocessing
import os
import subprocess
import sys
import time

WORK = """
import tempfile, time
from pathlib import Path
from app.specs.experiment import ExperimentSpec
from worker.lab.experiment import run_experiment
from worker.lab.local import FolderRecorder, FolderStore
spec = ExperimentSpec.model_validate({"training": {"epochs": 40}})
with tempfile.TemporaryDirectory() as folder:
    start = time.perf_counter()
    stages = FolderStore(Path(folder) / "stages")
    run_experiment(spec, FolderRecorder(Path(folder)), stages, data_dir=Path(), device="cpu")
    print(f"{time.perf_counter() - start:.1f} s")
"""
NICENESS = 10  # a worker's
POLICIES = (
    {"OMP_WAIT_POLICY": "PASSIVE"},
    {"GOMP_SPINCOUNT": "300"},
    {"GOMP_SPINCOUNT": "1000"},
    {"GOMP_SPINCOUNT": "10000"},
    {"OMP_WAIT_POLICY": "ACTIVE"},
)


def main() -> None:
    for beside in ("alone", "beside a busy process"):
        busy = multiprocessing.Process(target=spin, daemon=True)
        if beside != "alone":
            busy.start()
        for policy in POLICIES:
            done = subprocess.run(
                [sys.executable, "-c", WORK],
                env=os.environ | policy,
                preexec_fn=lambda: os.nice(NICENESS),
                capture_output=True,
                text=True,
                check=True,
            )
            print(f"{beside}, {policy}: {done.stdout.strip()}", flush=True)
        if busy.is_alive():
            busy.kill()


def spin() -> None:
    end = time.monotonic() + 3600
    while time.monotonic() < end:
        pass


if __name__ == "__main__":
    main()
