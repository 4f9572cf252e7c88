"""What a spec's uploads are: the facts of its data set and of its victim, found at submission."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter
from sqlalchemy.orm import Session

from app.core.errors import InvalidError, summary
from app.core.validation import FieldError, shown
from app.data.local_datasets import Known, MissingDatasetError, known
from app.data.uploads import repository
from app.specs.checks import Problem, find_victim_problems
from app.specs.dataset import DatasetSpec, Uploaded
from app.specs.experiment import ExperimentSpec
from app.specs.facts import DatasetFacts, Shape
from app.specs.model import ModelSpec
from app.tables.uploads import DATASET, MODEL, READY, Upload

_MODEL: TypeAdapter[ModelSpec] = TypeAdapter(ModelSpec)


class Sound(NamedTuple):
    """A model that its check found ready."""

    model: ModelSpec
    shape: Shape
    stamped: bool
    sha256: str


def facts_of(session: Session, spec: DatasetSpec, folder: Path) -> Known:
    """Facts and version of the data set that ``spec`` names; ``folder`` is the data folder. Raises InvalidError."""
    if isinstance(spec, Uploaded):
        upload = _ready(session, DATASET, spec.dataset_id, "dataset.dataset_id")
        return Known(DatasetFacts.model_validate(upload.facts), upload.version)
    try:
        return known(spec, folder)
    except MissingDatasetError as error:
        name = "key" if spec.name == "imported" else "name"
        raise _fault(f"dataset.{name}", getattr(spec, name), str(error)) from error


def victim_of(session: Session, spec: ExperimentSpec) -> Sound | None:
    """The model that ``spec`` starts from, if it names one. Raises InvalidError."""
    if spec.victim is None:
        return None
    upload = _ready(session, MODEL, spec.victim.model_id, "victim.model_id")
    return sound(upload)


def sound(upload: Upload) -> Sound:
    """What the check of a ready model found."""
    found = upload.facts or {}
    return Sound(
        _MODEL.validate_python(found["model"]),
        Shape.model_validate(found["shape"]),
        bool(found["stamped"]),
        upload.sha256,
    )


def problems(spec: ExperimentSpec, victim: Sound | None, facts: DatasetFacts) -> list[Problem]:
    """Every way in which the victim does not fit the spec; ``facts`` are those of the spec's data set."""
    if victim is None:
        return []
    return find_victim_problems(spec, victim.model, victim.shape, victim.stamped, facts)


def uses(spec: ExperimentSpec) -> list[tuple[str, str]]:
    """Kind and id of every upload that ``spec`` names."""
    named = [(DATASET, spec.dataset.dataset_id)] if isinstance(spec.dataset, Uploaded) else []
    return [*named, *([(MODEL, spec.victim.model_id)] if spec.victim is not None else [])]


def hold(session: Session, named: Iterable[tuple[str, str]]) -> None:
    """Lock the uploads that specs name (see `uses`) until their experiments are written, so that none is deleted
    between.

    Raises InvalidError if one is gone since the specs were checked.
    """
    for kind, upload_id in sorted(named):
        if repository.lock(session, kind, upload_id) is None:
            raise _missing(kind, upload_id, "dataset.dataset_id" if kind == DATASET else "victim.model_id")


def _ready(session: Session, kind: str, upload_id: str, field: str) -> Upload:
    upload = repository.get(session, kind, upload_id)
    if upload is None:
        raise _missing(kind, upload_id, field)
    if upload.status != READY:
        because = (
            f": {upload.reason}" if upload.reason else "; it can be used once its check has found it ready"
        )
        raise _fault(field, upload_id, f"the {kind} is {upload.status}{because}")
    return upload


def _missing(kind: str, upload_id: str, field: str) -> InvalidError:
    return _fault(field, upload_id, f"there is no uploaded {kind} with this id; POST /v1/{kind}s takes one")


def _fault(field: str, value: str, message: str) -> InvalidError:
    fault = FieldError(field=field, value=shown(value), message=message)
    return InvalidError(summary([fault]), [fault])
