"""Downloads the uploads that a spec refers to."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import select

from app.core.database import Database
from app.core.objects import Objects
from app.specs.dataset import DatasetSpec, Uploaded
from app.specs.experiment import ExperimentSpec
from app.tables.uploads import Upload, dataset_key, source_key
from worker.lab.contracts import DatasetDamagedError, LabError

Retrying = Callable[[Callable[[], None]], None]
"""Calls a function, again if a back end fails, as `worker.lease.Lease.retrying` does."""


class UploadGoneError(LabError):
    """An upload that a spec refers to is missing or damaged."""


@contextmanager
def fetched_inputs(
    spec: ExperimentSpec, database: Database, objects: Objects, data_dir: Path, retrying: Retrying
) -> Iterator[dict[str, Path]]:
    """Download the uploads that ``spec`` refers to; the model's file is deleted at exit.

    Yields the arguments of `worker.lab.experiment.run_experiment` that name them. Raises UploadGoneError,
    DatasetDamagedError, ObjectStoreError.
    """
    retrying(lambda: fetch_dataset(spec.dataset, objects, data_dir))
    if spec.victim is None:
        yield {}
        return
    model_id = spec.victim.model_id
    with tempfile.TemporaryDirectory(prefix="bdlab-victim-") as folder:
        path = Path(folder) / "model.safetensors"
        retrying(lambda: _fetch_model(model_id, path, database, objects))
        yield {"victim": path}


def _fetch_model(model_id: str, path: Path, database: Database, objects: Objects) -> None:
    with database.reading() as session:
        expected = session.scalar(select(Upload.sha256).where(Upload.id == model_id))
    actual = objects.download(source_key(model_id), path) if expected else None
    if actual is None or actual != expected:
        state = "missing" if actual is None else "damaged"
        raise UploadGoneError(f"victim.model_id: the file of model {model_id} is {state}")


def fetch_dataset(spec: DatasetSpec, objects: Objects, data_dir: Path) -> None:
    """Download an uploaded dataset into the data folder unless an intact copy is there: its content never changes.

    Raises UploadGoneError, DatasetDamagedError, ObjectStoreError.
    """
    if not isinstance(spec, Uploaded):
        return
    from worker.lab.data import files  # noqa: PLC0415  # brings numpy
    from worker.lab.data.datasets import uploaded_path  # noqa: PLC0415  # brings torch

    path = uploaded_path(spec.dataset_id, data_dir)
    if files.is_intact(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".fetch-")
    os.close(handle)
    try:
        if objects.download(dataset_key(spec.dataset_id), Path(partial)) is None:
            raise UploadGoneError(f"dataset.dataset_id: the file of dataset {spec.dataset_id} is missing")
        if not files.is_intact(Path(partial)):
            raise DatasetDamagedError(
                f"dataset.dataset_id: the file of dataset {spec.dataset_id} is damaged; upload it again"
            )
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)
