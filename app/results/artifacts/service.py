"""Stored files: what there is, and which bytes of one a request asks for."""

import re
from typing import NamedTuple

from app.core.context import Context
from app.core.errors import GoneError, RangeError, require
from app.results.artifacts import repository
from app.results.artifacts.schemas import ArtifactOut, Artifacts
from app.tables.artifacts import Artifact
from app.tables.experiments import require_experiment

_RANGE = re.compile(r"bytes=\s*(\d*)-(\d*)\s*", re.ASCII)
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def listing(
    context: Context, experiment_id: str, kind: str | None, arm: str | None, seed: int | None
) -> Artifacts:
    """The files of an experiment. Raises NotFoundError."""
    with context.database.reading() as session:
        require_experiment(session, experiment_id)
        rows = repository.of(session, experiment_id, kind, arm, seed)
    return Artifacts(artifacts=[_present(row) for row in rows])


def find(context: Context, artifact_id: str) -> Artifact:
    """Raises NotFoundError, and GoneError for a file that the retention policy let go."""
    with context.database.reading() as session:
        artifact = require(repository.get(session, artifact_id), "artifact", artifact_id)
    if artifact.expired_at is not None:
        raise GoneError(gone(artifact))
    return artifact


def gone(artifact: Artifact) -> str:
    """Since when and why a file is not there any more."""
    at = artifact.expired_at.isoformat(timespec="seconds") if artifact.expired_at else ""
    return f"the file {artifact.name} was deleted at {at}: {artifact.expired_why}"


class Part(NamedTuple):
    """The bytes ``[start, stop)`` of a file."""

    start: int
    stop: int


def part(header: str | None, size: int) -> Part | None:
    """The single range that a Range header asks for; None for the whole file.

    What RFC 9110 lets a server ignore (other units, several ranges, nonsense) is ignored.
    Raises RangeError if the range lies outside the file.
    """
    match = _RANGE.fullmatch(header or "")
    if match is None or match.groups() == ("", "") or len(header or "") > 60:
        return None
    first, last = match.groups()
    if first and last and int(first) > int(last):
        return None
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if start >= stop:
        raise RangeError(f"the file has {size} bytes", headers={"Content-Range": f"bytes */{size}"})
    return Part(start, stop)


def file_name(artifact: Artifact) -> str:
    """A name that is safe in a header and on any disk: ``seed-0/abl/curves.png`` as ``seed-0_abl_curves.png``."""
    return _UNSAFE.sub("_", artifact.name.replace("/", "_")).lstrip(".") or "file"


def _present(row: Artifact) -> ArtifactOut:
    fields = {name: getattr(row, name) for name in ArtifactOut.model_fields if name != "content"}
    return ArtifactOut(**fields, content=f"/v1/artifacts/{row.id}/content")
