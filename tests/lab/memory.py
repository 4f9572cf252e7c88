"""A recorder and a stage store that keep everything in memory, for tests of the lab."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.specs.experiment import ExperimentSpec
from worker.lab.contracts import LabError, Scope
from worker.lab.experiment import run_experiment

DIGITS_ONLY = Path("/nonexistent")  # digits ship with scikit-learn and need no folder


class MemoryStore:
    """Stages and checkpoints in dictionaries; ``computed`` lists the kinds that were not found in the cache."""

    def __init__(self) -> None:
        self.stages: dict[str, bytes] = {}
        self.checkpoints: dict[str, bytes] = {}
        self.computed: list[str] = []

    def load(self, key: str) -> bytes | None:
        return self.stages.get(key)

    def save(self, key: str, kind: str, data: bytes) -> None:
        self.stages[key] = data
        self.computed.append(kind)
        self.checkpoints.pop(key, None)

    def load_checkpoint(self, key: str) -> bytes | None:
        return self.checkpoints.get(key)

    def save_checkpoint(self, key: str, data: bytes) -> None:
        self.checkpoints[key] = data

    @contextmanager
    def claim(self, key: str, kind: str) -> Iterator[None]:
        yield


class MemoryRecorder:
    """Keeps what it is told; ``on_check`` runs before every batch and may raise."""

    def __init__(self, on_check: Callable[[], None] = lambda: None) -> None:
        self.on_check = on_check
        self.points: dict[tuple[str | None, int | None, str], dict[int, float]] = {}
        self.results: dict[tuple[str | None, int | None], dict[str, float | None]] = {}
        self.files: dict[str, bytes] = {}
        self.details: dict[str, dict[str, Any]] = {}
        self.warnings: list[str] = []
        self.failures: dict[tuple[str | None, int | None], LabError] = {}
        self.fractions: list[float] = []
        self.lines: list[str] = []

    def check(self) -> None:
        self.on_check()

    def progress(self, scope: Scope, epoch: int, epochs: int, fraction: float) -> None:
        self.fractions.append(fraction)

    def metric(self, scope: Scope, name: str, step: int, value: float) -> None:
        self.points.setdefault((scope.arm, scope.seed, name), {})[step] = value

    def result(self, scope: Scope, values: dict[str, float | None]) -> None:
        self.results[scope.arm, scope.seed] = values

    def warning(self, scope: Scope, message: str) -> None:
        self.warnings.append(message)

    def arm_failed(self, scope: Scope, error: LabError) -> None:
        self.failures[scope.arm, scope.seed] = error

    def artifact(
        self, scope: Scope, name: str, kind: str, media_type: str, data: bytes, metadata: dict[str, Any]
    ) -> None:
        self.files[name] = data
        self.details[name] = metadata

    def log(self, message: str) -> None:
        self.lines.append(message)


def experiment(
    spec: dict[str, Any],
    recorder: MemoryRecorder | None = None,
    store: MemoryStore | None = None,
    checkpoint_seconds: float = 0.0,
) -> MemoryRecorder:
    """Run ``spec`` on digits and return what was recorded."""
    recorder = recorder or MemoryRecorder()
    run_experiment(
        ExperimentSpec.model_validate(spec),
        recorder,
        store or MemoryStore(),
        data_dir=DIGITS_ONLY,
        device="cpu",
        checkpoint_seconds=checkpoint_seconds,
    )
    return recorder
