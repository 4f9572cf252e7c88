"""A recorder and a stage store on a folder, for runs without the service."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, TextIO

from app.specs.artifacts import ArtifactKind
from worker.lab.contracts import LabError, Scope

DIGEST_BYTES = 32


def write_atomically(path: Path, *parts: bytes) -> None:
    """Write a file atomically: a reader never sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.writelines(parts)
    os.replace(partial, path)


class FolderStore:
    """Stages and checkpoints as files, each after its SHA-256: a damaged one counts as never computed.

    Processes may share the folder: a claim waits for the process that holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, key: str) -> bytes | None:
        return self._read(self.folder / f"{key}.stage")

    def save(self, key: str, kind: str, data: bytes) -> None:
        self._write(self.folder / f"{key}.stage", data)
        (self.folder / f"{key}.checkpoint").unlink(missing_ok=True)

    def load_checkpoint(self, key: str) -> bytes | None:
        return self._read(self.folder / f"{key}.checkpoint")

    def save_checkpoint(self, key: str, data: bytes) -> None:
        self._write(self.folder / f"{key}.checkpoint", data)

    @contextmanager
    def claim(self, key: str, kind: str) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{key}.lock"
        with path.open("w") as lock:  # the system releases the lock if this process dies
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                # A process that waited for the lock then finds the stage; only after an error may two compute it.
                path.unlink(missing_ok=True)

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        write_atomically(path, sha256(data).digest(), data)

    @staticmethod
    def _read(path: Path) -> bytes | None:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            digest, data = file.read(DIGEST_BYTES), file.read()
        return data if sha256(data).digest() == digest else None


class FolderRecorder:
    """Artifacts as files, time series as ``metrics.jsonl``, the log as ``log.txt`` and on the stream ``echo``."""

    def __init__(self, folder: Path, echo: TextIO | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.echo = echo
        self.notes: list[dict[str, Any]] = []
        self._metrics = (folder / "metrics.jsonl").open("w")
        self._log = (folder / "log.txt").open("a")

    def check(self) -> None:
        """Does nothing: a local run is canceled by an interrupt."""

    def progress(self, scope: Scope, epoch: int, epochs: int, fraction: float) -> None:
        if self.echo and self.echo.isatty():
            where = f"seed {scope.seed} {scope.arm or ''} {scope.stage}"
            print(f"\r{fraction:4.0%}  {where:<50} {epoch}/{epochs} ", end="", file=self.echo, flush=True)

    def metric(self, scope: Scope, name: str, step: int, value: float) -> None:
        point = {"arm": scope.arm, "seed": scope.seed, "name": name, "step": step, "value": value}
        self._metrics.write(json.dumps(point) + "\n")

    def result(self, scope: Scope, values: dict[str, float | None]) -> None:
        self._metrics.flush()

    def warning(self, scope: Scope, message: str) -> None:
        self.notes.append({"arm": scope.arm, "seed": scope.seed, "warning": message})
        self.log(f"warning: seed {scope.seed}, {scope.arm}: {message}")

    def arm_failed(self, scope: Scope, error: LabError) -> None:
        self.log(f"failed: seed {scope.seed}, {scope.arm}: {error}")

    def artifact(
        self,
        scope: Scope,
        name: str,
        kind: ArtifactKind,
        media_type: str,
        data: bytes,
        metadata: dict[str, Any],
    ) -> None:
        write_atomically(self.folder / name, data)

    def log(self, message: str) -> None:
        self._log.write(message + "\n")
        self._log.flush()
        if self.echo:
            print(f"\r{message:<78}" if self.echo.isatty() else message, file=self.echo)

    def close(self) -> None:
        self._metrics.close()
        self._log.close()
