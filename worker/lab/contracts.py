"""The interfaces that the lab needs, and the errors it raises.

The service implements recorder and stage store on SQL and an object store, ``python -m worker.lab`` on a folder.
The lab itself knows neither.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from app.specs.artifacts import ArtifactKind


class LabError(Exception):
    """Base of all errors that the lab raises on purpose."""


class DatasetMissingError(LabError):
    """A dataset is not in the data folder; the message names the command that gets it."""


class DatasetDamagedError(LabError):
    """A dataset's file does not hold what was written to it; the message names both."""


class SpecError(LabError):
    """The spec cannot run on its dataset; the message names field, value and what is allowed."""


class NonFiniteLossError(LabError):
    """A loss or an output became NaN or infinite; in training the message names epoch and batch."""


class CanceledError(LabError):
    """Raised by `Recorder.check` to stop the run."""


class StageBusyError(LabError):
    """Another worker is computing this stage; retry later."""


@dataclass(frozen=True)
class Scope:
    """What a progress report, number or file belongs to. ``arm`` and ``seed`` are None if it is about all of them."""

    arm: str | None = None
    seed: int | None = None
    stage: str | None = None


class Recorder(Protocol):
    """Receives everything that a run reports.

    Calls must be idempotent: a resumed run reports an epoch again, and the last call counts.
    """

    def check(self) -> None:
        """Called before every batch; must be cheap. Raises CanceledError to stop the run."""

    def progress(self, scope: Scope, epoch: int, epochs: int, fraction: float) -> None:
        """``epoch`` of ``epochs`` of this stage are done, and ``fraction`` in [0, 1] of the whole experiment."""

    def metric(self, scope: Scope, name: str, step: int, value: float) -> None:
        """One point of a time series; ``step`` is the epoch, counted from 1 over all stages of the arm."""

    def result(self, scope: Scope, values: dict[str, float | None]) -> None:
        """Final numbers of one arm and seed. A value may be None where it has no meaning."""

    def warning(self, scope: Scope, message: str) -> None:
        """A caveat for readers of this arm's result."""

    def arm_failed(self, scope: Scope, error: LabError) -> None:
        """This arm and seed failed; the others go on."""

    def artifact(
        self,
        scope: Scope,
        name: str,
        kind: ArtifactKind,
        media_type: str,
        data: bytes,
        metadata: dict[str, Any],
    ) -> None:
        """Store a file. ``name`` is unique within the experiment: a path such as ``seed-0/abl/curves.png``."""

    def log(self, message: str) -> None:
        """Add a line to the experiment's log."""


class StageStore(Protocol):
    """Finished stages and the checkpoints of unfinished ones, by content address."""

    def load(self, key: str) -> bytes | None:
        """The finished stage, or None."""

    def save(self, key: str, kind: str, data: bytes) -> None:
        """Store a finished stage atomically."""

    def load_checkpoint(self, key: str) -> bytes | None:
        """The latest checkpoint of an unfinished stage, or None."""

    def save_checkpoint(self, key: str, data: bytes) -> None:
        """Replace the checkpoint atomically."""

    def claim(self, key: str, kind: str) -> AbstractContextManager[None]:
        """Hold the exclusive right to compute this stage. Raises StageBusyError while another worker holds it."""
