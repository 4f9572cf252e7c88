"""What users sent, brought to where the lab finds it."""

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
from worker.lab.contracts import LabError

Patiently = Callable[[Callable[[], None]], None]


class UploadGoneError(LabError):
    """An upload that a spec names is not there any more."""


@contextmanager
def at_hand(
    spec: ExperimentSpec, database: Database, objects: Objects, data_dir: Path, patiently: Patiently
) -> Iterator[dict[str, Path]]:
    """While open, the uploads that ``spec`` names lie on this machine.

    Gives the arguments of `worker.lab.experiment.run` that name them. ``patiently`` calls what it is given, again if
    need be. Raises UploadGoneError, ObjectStoreError.
    """
    patiently(lambda: fetch_dataset(spec.dataset, objects, data_dir))
    if spec.victim is None:
        yield {}
        return
    model_id = spec.victim.model_id
    with tempfile.TemporaryDirectory(prefix="bdlab-victim-") as folder:
        path = Path(folder) / "model.safetensors"
        patiently(lambda: _fetch_model(model_id, path, database, objects))
        yield {"victim": path}


def _fetch_model(model_id: str, path: Path, database: Database, objects: Objects) -> None:
    with database.reading() as session:
        wanted = session.scalar(select(Upload.sha256).where(Upload.id == model_id))
    found = objects.download(source_key(model_id), path) if wanted else None
    if found is None or found != wanted:
        state = "gone" if found is None else "damaged"
        raise UploadGoneError(f"victim.model_id: the file of model {model_id} is {state}")


def fetch_dataset(spec: DatasetSpec, objects: Objects, data_dir: Path) -> None:
    """Put an uploaded data set under the data folder, if it is not there: its content never changes.

    Raises UploadGoneError, ObjectStoreError.
    """
    if not isinstance(spec, Uploaded):
        return
    from worker.lab.data.datasets import uploaded_path  # noqa: PLC0415  # brings torch

    path = uploaded_path(spec.dataset_id, data_dir)
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".fetch-")
    os.close(handle)
    try:
        if objects.download(dataset_key(spec.dataset_id), Path(partial)) is None:
            raise UploadGoneError(f"dataset.dataset_id: the file of data set {spec.dataset_id} is gone")
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)
