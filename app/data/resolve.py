"""What a spec refers to: its dataset, and the uploaded model that it starts from."""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter
from sqlalchemy.orm import Session

from app.core.errors import InvalidError
from app.data.local_datasets import Dataset, MissingDatasetError, find_local
from app.data.uploads import repository
from app.specs.dataset import DatasetSpec, Uploaded
from app.specs.experiment import ExperimentSpec
from app.specs.facts import DatasetFacts, Shape
from app.specs.model import ModelSpec
from app.specs.models.base import install_command
from app.tables.uploads import DATASET, MODEL, READY, Upload

_DATASET: TypeAdapter[DatasetSpec] = TypeAdapter(DatasetSpec)
_MODEL: TypeAdapter[ModelSpec] = TypeAdapter(ModelSpec)


class UploadedModel(NamedTuple):
    """A model that its check found ready."""

    model: ModelSpec
    shape: Shape
    stamped: bool
    sha256: str


class Inputs(NamedTuple):
    """What a spec refers to. ``victim`` is None if the spec names no model."""

    dataset: Dataset
    victim: UploadedModel | None


def is_installed(package: str) -> bool | None:
    """Whether ``package`` is installed; None if this environment has no torch, so that the workers are elsewhere."""
    return None if find_spec("torch") is None else find_spec(package) is not None


def resolve(session: Session, spec: ExperimentSpec, folder: Path) -> Inputs:
    """Look up what ``spec`` refers to; ``folder`` is the data folder. Raises InvalidError."""
    if spec.model.extra and is_installed(spec.model.extra) is False:
        command = install_command(spec.model.extra)
        raise InvalidError.of(
            "model.name", spec.model.name, f"{spec.model.extra} is not installed; get it with: {command}"
        )
    dataset = resolve_dataset(session, spec.dataset, folder)
    if spec.victim is None:
        return Inputs(dataset, None)
    upload = _ready_upload(session, MODEL, spec.victim.model_id, "victim.model_id")
    facts = upload.facts or {}
    victim = UploadedModel(
        _MODEL.validate_python(facts["model"]),
        Shape.model_validate(facts["shape"]),
        bool(facts["stamped"]),
        upload.sha256,
    )
    return Inputs(dataset, victim)


def resolve_dataset(session: Session, spec: DatasetSpec, folder: Path) -> Dataset:
    """Facts and version of the dataset that ``spec`` names. Raises InvalidError."""
    if isinstance(spec, Uploaded):
        upload = _ready_upload(session, DATASET, spec.dataset_id, "dataset.dataset_id")
        return Dataset(dataset_facts(upload.facts or {}), upload.version)
    try:
        return find_local(spec, folder)
    except MissingDatasetError as error:
        field = "key" if spec.name == "imported" else "name"
        raise InvalidError.of(f"dataset.{field}", getattr(spec, field), str(error)) from error


def dataset_facts(document: dict[str, Any]) -> DatasetFacts:
    """The facts of an uploaded dataset from what its check stored, which has notes besides."""
    return DatasetFacts.model_validate({name: value for name, value in document.items() if name != "notes"})


def stored_facts(session: Session, document: dict[str, Any], folder: Path) -> DatasetFacts:
    """Facts of the dataset of a stored spec, with the sizes that the spec uses. Raises InvalidError."""
    spec = _DATASET.validate_python(document["dataset"])
    return resolve_dataset(session, spec, folder).facts.subset(spec)


def named_uploads(spec: ExperimentSpec) -> list[tuple[str, str]]:
    """Kind and id of every upload that ``spec`` names."""
    datasets = [(DATASET, spec.dataset.dataset_id)] if isinstance(spec.dataset, Uploaded) else []
    return [*datasets, *([(MODEL, spec.victim.model_id)] if spec.victim is not None else [])]


def lock_uploads(session: Session, named: Iterable[tuple[str, str]]) -> None:
    """Lock `named_uploads` until the experiments that name them are committed, so that none is deleted meanwhile.

    Raises InvalidError if one was deleted after the specs were checked.
    """
    for kind, upload_id in sorted(named):
        if repository.lock(session, kind, upload_id) is None:
            raise _missing(kind, upload_id, "dataset.dataset_id" if kind == DATASET else "victim.model_id")


def _ready_upload(session: Session, kind: str, upload_id: str, field: str) -> Upload:
    upload = repository.get(session, kind, upload_id)
    if upload is None:
        raise _missing(kind, upload_id, field)
    if upload.status != READY:
        reason = (
            f": {upload.reason}" if upload.reason else "; it can be used once its check has found it ready"
        )
        raise InvalidError.of(field, upload_id, f"the {kind} is {upload.status}{reason}")
    return upload


def _missing(kind: str, upload_id: str, field: str) -> InvalidError:
    return InvalidError.of(
        field, upload_id, f"there is no uploaded {kind} with this id; POST /v1/{kind}s takes one"
    )
