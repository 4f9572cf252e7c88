"""Stored files: their list, and which bytes a request asks for."""

import re
from typing import NamedTuple

from app.core.context import Context
from app.core.errors import GoneError, RangeError, require
from app.results.artifacts import repository
from app.results.artifacts.schemas import ArtifactOut, Artifacts
from app.tables.artifacts import Artifact
from app.tables.experiments import check_experiment

_RANGE = re.compile(r"bytes=\s*(\d*)-(\d*)\s*", re.ASCII)
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
LONGEST_RANGE = 60


class ByteRange(NamedTuple):
    """The bytes ``[start, stop)`` of a file."""

    start: int
    stop: int


def list_artifacts(
    context: Context, experiment_id: str, kind: str | None, arm: str | None, seed: int | None
) -> Artifacts:
    """The files of an experiment. Raises NotFoundError."""
    with context.database.reading() as session:
        check_experiment(session, experiment_id)
        rows = repository.list_artifacts(session, experiment_id, kind, arm, seed)
    return Artifacts(artifacts=[_present(row) for row in rows])


def get_artifact(context: Context, artifact_id: str) -> Artifact:
    """Raises NotFoundError, or GoneError if the retention policy deleted the file."""
    with context.database.reading() as session:
        artifact = require(repository.get(session, artifact_id), "artifact", artifact_id)
    if artifact.expired_at is not None:
        raise GoneError(deletion_message(artifact))
    return artifact


def deletion_message(artifact: Artifact) -> str:
    """When and why the retention policy deleted a file."""
    at = artifact.expired_at.isoformat(timespec="seconds") if artifact.expired_at else ""
    return f"the file {artifact.name} was deleted at {at}: {artifact.expired_why}"


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """The single range of a Range header; None for the whole file.

    Other units, several ranges and malformed headers are ignored, as RFC 9110 permits.
    Raises RangeError if the range is outside the file.
    """
    match = _RANGE.fullmatch(header or "")
    if match is None or match.groups() == ("", "") or len(header or "") > LONGEST_RANGE:
        return None
    first, last = match.groups()
    if first and last and int(first) > int(last):
        return None
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if start >= stop:
        raise RangeError(f"the file has {size} bytes", headers={"Content-Range": f"bytes */{size}"})
    return ByteRange(start, stop)


def file_name(artifact: Artifact) -> str:
    """A name that is safe in a header and on any disk: ``seed-0_abl_curves.png`` for ``seed-0/abl/curves.png``."""
    return _UNSAFE.sub("_", artifact.name.replace("/", "_")).lstrip(".") or "file"


def _present(row: Artifact) -> ArtifactOut:
    fields = {name: getattr(row, name) for name in ArtifactOut.model_fields if name != "content"}
    return ArtifactOut(**fields, content=f"/v1/artifacts/{row.id}/content")
