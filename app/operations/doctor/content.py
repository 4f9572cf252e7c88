"""All stored content against its digests: files of experiments, cached stages, uploads, datasets on this machine."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import InstrumentedAttribute

from app.core.database import Database
from app.core.objects import Objects
from app.data import local_datasets
from app.operations.doctor.findings import Finding, Installation, error, ok, warning
from app.operations.housekeeping.stages import stage_key
from app.tables.artifacts import Artifact
from app.tables.experiments import Stage
from app.tables.uploads import DATASET, READY, Upload, dataset_key, source_key

CHECK = "content"
INTACT, DAMAGED, MISSING = "intact", "damaged", "missing"
THREADS, PAGE = 8, 500


class Content(NamedTuple):
    """Something that is stored. ``find_state`` reads it; ``explain`` gives the findings for a state that is not
    intact, none if it was deleted meanwhile."""

    find_state: Callable[[], str]
    explain: Callable[[str], Iterable[Finding]]


def check_content(installation: Installation) -> Iterator[Finding]:
    """A finding for everything that is damaged or missing, and the number of contents that are intact.

    Nothing is changed: whoever reads it next notices, too.
    """
    intact = 0
    with ThreadPoolExecutor(THREADS) as pool:
        for page in _contents(installation):
            for content, state in zip(page, pool.map(lambda one: one.find_state(), page), strict=True):
                if state == INTACT:
                    intact += 1
                else:
                    yield from content.explain(state)
    yield ok(CHECK, f"{intact} files, stages, uploads and datasets are intact")


def _contents(installation: Installation) -> Iterator[Sequence[Content]]:
    database = installation.database
    yield [_local_file(*one) for one in local_datasets.files(installation.settings.datasets)]
    if database is None:
        return
    objects = Objects(installation.settings.objects)
    for key, is_stored, describe in (
        (Artifact.sha256, Artifact.expired_at.is_(None), _file),
        (Stage.key, Stage.ready_at.is_not(None), _stage),
        (Upload.id, Upload.status == READY, _upload),
    ):
        for rows in _pages(database, key, is_stored):
            yield [describe(database, objects, row) for row in rows]


def _pages(database: Database, key: InstrumentedAttribute[str], is_stored: Any) -> Iterator[list[Any]]:
    """One row for each value of ``key``, in pages."""
    after = ""
    while True:
        page = select(key).where(is_stored, key > after).distinct().order_by(key).limit(PAGE)
        with database.whole.reading() as session:
            keys = session.scalars(page).all()
            rows = session.scalars(select(key.class_).where(is_stored, key.in_(keys)))
            by_key = {getattr(row, key.key): row for row in rows}
        if not keys:
            return
        yield list(by_key.values())
        after = keys[-1]


def _file(database: Database, objects: Objects, row: Artifact) -> Content:
    def explain(state: str) -> Iterator[Finding]:
        names = select(Artifact.experiment_id, Artifact.name).where(
            Artifact.sha256 == row.sha256, Artifact.expired_at.is_(None)
        )
        with database.whole.reading() as session:
            files = session.execute(names.order_by(Artifact.experiment_id, Artifact.name)).all()
        for experiment_id, name in files:
            detail = f"the file {name} of experiment {experiment_id} is {state}"
            yield error(CHECK, detail, f"POST /v1/experiments/{experiment_id}:retry, which writes it again")

    return Content(lambda: _state(objects.digest(row.object_key), row.sha256), explain)


def _stage(database: Database, objects: Objects, row: Stage) -> Content:
    def explain(state: str) -> Iterator[Finding]:
        with database.whole.reading() as session:
            sha256 = session.scalar(select(Stage.sha256).where(Stage.key == row.key))
        if sha256 == row.sha256:
            detail = f"the cached stage {row.key} ({row.kind}) is {state}"
            yield warning(CHECK, detail, "nothing has to be done: it is computed again when it is needed")

    return Content(lambda: _state(objects.digest(stage_key(row.key)), row.sha256), explain)


def _upload(database: Database, objects: Objects, row: Upload) -> Content:
    def find_state() -> str:
        if row.kind != DATASET:
            return _state(objects.digest(source_key(row.id)), row.sha256)
        with tempfile.TemporaryDirectory(prefix="bdlab-doctor-") as folder:
            path = Path(folder) / "dataset.safetensors"
            if objects.download(dataset_key(row.id), path) is None:
                return MISSING
            return INTACT if local_datasets.is_intact(path, row.version) else DAMAGED

    def explain(state: str) -> Iterator[Finding]:
        with database.whole.reading() as session:
            exists = session.get(Upload, row.id) is not None
        if exists:
            yield error(CHECK, f"the uploaded {row.kind} {row.id} is {state}", "upload it again")

    return Content(find_state, explain)


def _local_file(path: Path, command: str) -> Content:
    def explain(state: str) -> Iterator[Finding]:
        finding = warning if path.parent.name == local_datasets.UPLOADED else error
        yield finding(CHECK, f"the dataset {path.stem!r} is {state}: {path}", command)

    return Content(lambda: INTACT if local_datasets.is_intact(path) else DAMAGED, explain)


def _state(digest: str | None, expected: str | None) -> str:
    return MISSING if digest is None else INTACT if digest == expected else DAMAGED
