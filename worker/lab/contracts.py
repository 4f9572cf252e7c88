"""What the lab asks of its surroundings, and the errors it raises.

The service gives a recorder and a stage store backed by SQL and an object store; ``python -m worker.lab``
gives ones backed by a folder. The lab itself knows neither.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from app.specs.artifacts import ArtifactKind


class LabError(Exception):
    """Base of everything that the lab raises on purpose."""


class DatasetMissingError(LabError):
    """A data set is not under the data folder; the message names the command that gets it."""


class SpecError(LabError):
    """The spec cannot run on its data set; the message names field, value and what is allowed."""


class NonFiniteLossError(LabError):
    """Training produced a loss that is no finite number; the message names epoch and batch."""


class CanceledError(LabError):
    """Raised from `Recorder.check` when the run shall stop."""


class StageBusyError(LabError):
    """Another worker computes this stage right now; come back a little later."""


@dataclass(frozen=True)
class Scope:
    """What a progress report, number or file belongs to. ``arm`` and ``seed`` are None if it spans all."""

    arm: str | None = None
    seed: int | None = None
    stage: str | None = None


class Recorder(Protocol):
    """Receives everything a run has to tell. Every call may be repeated with the same arguments
    (a resumed run reports an epoch again): the last one counts."""

    def check(self) -> None:
        """Called before every batch; must be cheap. Raises CanceledError to stop the run."""

    def progress(self, scope: Scope, epoch: int, epochs: int, fraction: float) -> None:
        """``epoch`` of ``epochs`` of this stage are done, and ``fraction`` in [0, 1] of the whole experiment."""

    def metric(self, scope: Scope, name: str, step: int, value: float) -> None:
        """One point of a time series; ``step`` is the epoch, counted from 1 over all stages of the arm."""

    def result(self, scope: Scope, values: dict[str, float | None]) -> None:
        """Final numbers of one arm and seed. A value may be None where it has no meaning."""

    def warning(self, scope: Scope, message: str) -> None:
        """Something a reader of this arm's result must know."""

    def arm_failed(self, scope: Scope, error: LabError) -> None:
        """This arm and seed ended with an error; the others go on."""

    def artifact(
        self,
        scope: Scope,
        name: str,
        kind: ArtifactKind,
        media_type: str,
        data: bytes,
        metadata: dict[str, Any],
    ) -> None:
        """A file to keep. ``name`` is unique within the experiment: a path such as ``seed-0/abl/curves.png``."""

    def log(self, message: str) -> None:
        """One line for the experiment's log."""


class StageStore(Protocol):
    """Where finished stages and the checkpoints of unfinished ones are kept, by content-address."""

    def load(self, key: str) -> bytes | None:
        """The finished stage, or None."""

    def save(self, key: str, kind: str, data: bytes) -> None:
        """Keep a finished stage; all or nothing."""

    def load_checkpoint(self, key: str) -> bytes | None:
        """The latest checkpoint of an unfinished stage, or None."""

    def save_checkpoint(self, key: str, data: bytes) -> None:
        """Replace the checkpoint; all or nothing."""

    def claim(self, key: str, kind: str) -> AbstractContextManager[None]:
        """Hold the right to compute this stage; raises StageBusyError while another worker holds it."""
