"""Running one stage: load it from the store, or compute it with checkpoints and store it.

A stage's outcome is tensors, facts (JSON), and the time series that it recorded. It is serialized as JSON and
safetensors, so nothing is ever unpickled.
"""

import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from safetensors.torch import save
from torch import Tensor

from app.specs.experiment import CLEAN
from app.specs.stages import PlannedStage
from worker.lab.compute import Compute
from worker.lab.contracts import Recorder, Scope, StageStore
from worker.lab.tensor_files import read_tensors, write_tensors


@dataclass
class Outcome:
    """The result of a stage. ``history`` is its time series: (name, step within the stage, value).

    Tensors are sorted by name, so that files made of them do not show whether the stage was computed or loaded.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)
    history: list[tuple[str, int, float]] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.tensors = dict(sorted(self.tensors.items()))

    def dumps(self) -> bytes:
        header = {"facts": self.facts, "history": self.history, "seconds": self.seconds}
        # Not as safetensors metadata, which stays text: 8 bytes of length, the JSON, the tensors.
        text = json.dumps(header).encode()
        out = io.BytesIO()
        out.write(len(text).to_bytes(8, "little") + text)
        write_tensors(out, self.tensors)
        return out.getvalue()  # no copy

    @classmethod
    def loads(cls, data: bytes) -> "Outcome":
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        history = [(name, step, value) for name, step, value in header["history"]]
        return cls(read_tensors(data, 8 + length), header["facts"], history, header["seconds"])


@dataclass
class Progress:
    """Progress of the whole experiment, in planned epochs."""

    total: int
    done: int = 0

    def fraction(self, epochs_of_stage: float = 0.0) -> float:
        return min(1.0, (self.done + epochs_of_stage) / max(1, self.total))


@dataclass
class StageRun:
    """One planned stage of one arm: its services while it is computed."""

    planned: PlannedStage
    recorder: Recorder
    store: StageStore
    compute: Compute
    progress: Progress
    checkpoint_seconds: float
    first_step: int
    """Steps of the arm's time series already taken by its earlier stages."""
    history: list[tuple[str, int, float]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """Caveats for readers of the result; reported when the stage ends, and when it is loaded from the store."""
    sweep: dict[str, list[float]] = field(default_factory=dict)
    """Columns of a table of models that the stage chose from; see `Defense.record_sweep`."""
    _started: float = field(default_factory=time.monotonic)
    _saved: float = field(default_factory=time.monotonic)
    _seconds_before: float = 0.0

    @property
    def scope(self) -> Scope:
        return Scope(self.planned.arm, self.planned.seed, self.planned.kind)

    def resume(self) -> Outcome | None:
        """Load the latest checkpoint, if any, and report its history again."""
        data = self.store.load_checkpoint(self.planned.key)
        if data is None:
            return None
        saved = Outcome.loads(data)
        self.history, self._seconds_before = saved.history, saved.seconds
        self._replay(saved.history)
        self.recorder.log(f"{self._title()}: resumed from a checkpoint at epoch {saved.facts.get('epoch')}")
        return saved

    def checkpoint(self, state: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]]) -> None:
        """Store ``state()`` (tensors, facts) if the last checkpoint is older than `checkpoint_seconds`."""
        if time.monotonic() - self._saved < self.checkpoint_seconds:
            return
        tensors, facts = state()
        self.store.save_checkpoint(self.planned.key, self._outcome(tensors, facts).dumps())
        self._saved = time.monotonic()

    def epoch_done(self, epoch: int, epochs: int, values: dict[str, float]) -> None:
        """Report an epoch's numbers and progress."""
        points = [(name, epoch, float(value)) for name, value in values.items()]
        self.history.extend(points)
        self._replay(points)
        share = epoch / max(1, epochs) * self.planned.epochs
        self.recorder.progress(self.scope, epoch, epochs, self.progress.fraction(share))

    def save_last_finite(self, tensors: dict[str, Tensor]) -> None:
        """Store the last finite state of a network whose training diverged."""
        where = f"seed-{self.planned.seed}/{self.planned.arm}/last-finite.safetensors"
        labels = {"arm": self.planned.arm, "seed": self.planned.seed, "backdoored": self.planned.arm != CLEAN}
        data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        self.recorder.artifact(self.scope, where, "checkpoint", "application/octet-stream", data, labels)

    def finish(self, tensors: dict[str, Tensor], **facts: Any) -> Outcome:
        """The stage's outcome, with history, warnings, sweep and computing time."""
        sweep = {"sweep": self.sweep} if self.sweep else {}
        return self._outcome(tensors, facts | {"warnings": self.warnings} | sweep)

    def _outcome(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> Outcome:
        return Outcome(
            tensors, facts, list(self.history), self._seconds_before + time.monotonic() - self._started
        )

    def _replay(self, points: list[tuple[str, int, float]]) -> None:
        for name, step, value in points:
            self.recorder.metric(self.scope, name, self.first_step + step, value)

    def _title(self) -> str:
        arm = self.planned.arm or "all arms"
        return f"seed {self.planned.seed}, {arm}, {self.planned.kind}"

    def run(self, compute: Callable[["StageRun"], Outcome]) -> Outcome:
        """Load the stage from the store, or claim and compute it.

        Raises StageBusyError while another worker is computing it.
        """
        self.recorder.check()
        self.recorder.progress(self.scope, 0, self.planned.epochs, self.progress.fraction())
        outcome = self._load()
        if outcome is None:
            with self.store.claim(self.planned.key, self.planned.kind):
                outcome = self._load()  # another worker may have finished it before the claim
                if outcome is None:
                    self.recorder.log(f"{self._title()}: started")
                    self._started = self._saved = time.monotonic()
                    outcome = compute(self)
                    self.store.save(self.planned.key, self.planned.kind, outcome.dumps())
                    self.recorder.log(f"{self._title()}: done in {outcome.seconds:.1f} s")
        self.progress.done += self.planned.epochs
        for message in outcome.facts.get("warnings", ()):
            self.recorder.warning(Scope(self.planned.arm, self.planned.seed), message)
        return outcome

    def _load(self) -> Outcome | None:
        data = self.store.load(self.planned.key)
        if data is None:
            return None
        outcome = Outcome.loads(data)
        self._replay(outcome.history)
        self.recorder.log(f"{self._title()}: taken from the cache")
        return replace(outcome, facts={**outcome.facts, "cached": True})
