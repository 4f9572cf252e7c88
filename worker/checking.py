"""Checks of what users sent: is it what it should be, and can it do no harm?

The upload's row is claimed by a conditional UPDATE, with the number of the attempt as the fencing token. A worker that
dies leaves a claim that runs out, after which the relay announces the upload again.
"""

import errno
import logging
import signal
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy.exc import SQLAlchemyError

from app.core import metrics, tracing
from app.core.database import Database, utcnow
from app.core.errors import InvalidError
from app.core.objects import Objects, ObjectStoreError
from app.data.resolve import resolve_dataset
from app.data.uploads import repository
from app.settings import Settings
from app.specs.dataset import Uploaded
from app.specs.facts import Shape
from app.specs.model import ModelSpec
from app.tables.uploads import MODEL, READY, REFUSED, Upload, dataset_key, source_key
from app.webhooks import outbox
from worker.lab.contracts import LabError
from worker.memory import at_most

REASON_CHARACTERS = 1000
MACHINE_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE)
"""Faults of this machine; all others that come of reading a local file are the file's own."""
AGAIN_SECONDS = 10.0
SLACK_BYTES = 768 * 2**20
"""What libraries take to read any file at all."""
COPIES = 3
"""How often the pixels of a data set are in memory at once while they are put in order."""
MOST_CLASSES, LONGEST_NAME = 10_000, 200
LABELS = ("arm", "seed", "backdoored")
_MODEL: TypeAdapter[ModelSpec] = TypeAdapter(ModelSpec)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """What a check found: facts, and a data set's version; or why the file is refused."""

    facts: dict[str, Any] | None = None
    version: str = ""
    reason: str | None = None


def check(upload_id: str, settings: Settings) -> str | None:
    """Check one upload. Returns its new status, or None if there was nothing to do: a message is only a hint."""
    database, objects = Database(settings.database), Objects(settings.objects)
    try:
        with database.writing() as session:
            upload = repository.claim(session, upload_id, settings.check_seconds)
        if upload is None:
            return None
        with (
            upload.bind_origin(upload_id=upload.id, owner_id=upload.owner_id, attempt=upload.attempts),
            tracing.span("check upload", kind="consumer", parent=upload.traceparent) as span,
        ):
            status = _check(upload, database, objects, settings)
            span.set_attribute("outcome", status or "none")
            log.info("check ended", extra={"outcome": status})
        metrics.CHECKS.labels(status or "none").inc()
        return status
    finally:
        database.close()


def _check(upload: Upload, database: Database, objects: Objects, settings: Settings) -> str | None:
    signal_before = signal.signal(signal.SIGTERM, _stop)
    try:
        if upload.attempts > settings.max_attempts:
            found = Found(
                reason=f"its check was begun {settings.max_attempts} times and never came to an end"
            )
        else:
            with tempfile.TemporaryDirectory(prefix="bdlab-check-") as folder:
                found = _look(upload, Path(folder), database, objects, settings)
    except (ObjectStoreError, OSError) as error:
        log.warning("%s; the check is put off", error)
        _release(database, upload)
        return None
    except SystemExit:
        _release(database, upload)
        raise
    finally:
        signal.signal(signal.SIGTERM, signal_before)
    return _finish(database, objects, upload, found)


def _look(upload: Upload, folder: Path, database: Database, objects: Objects, settings: Settings) -> Found:
    suffix = "safetensors" if upload.kind == MODEL else upload.request["format"]
    path = folder / f"file.{suffix}"
    arrived = objects.download(source_key(upload.id), path)
    if arrived != upload.sha256:
        return Found(reason="the stored file is gone" if arrived is None else "the stored file is damaged")
    try:
        if upload.kind == MODEL:
            return _look_at_model(upload, path, database, settings)
        most = settings.max_dataset_bytes
        with at_most(COPIES * most + SLACK_BYTES):
            return _look_at_dataset(upload, path, objects, most)
    except Exception as error:
        return Found(reason=_why(error, folder))


def _why(error: Exception, folder: Path) -> str:
    """Why the file is refused. Raises the error again if it is not the file's fault."""
    if isinstance(error, ObjectStoreError | SQLAlchemyError):
        raise error
    if isinstance(error, OSError) and error.errno in MACHINE_FAULTS:
        raise error
    if isinstance(error, LabError):
        return _in_words_of_the_api(str(error), folder)
    if isinstance(error, MemoryError):
        return "reading the file takes more memory than a data set of the allowed size does"
    # The readers of others raise all sorts of things on files that were made to break them.
    log.warning("the file cannot be read", exc_info=error)
    return f"the file cannot be read: {type(error).__name__}"


def _look_at_model(upload: Upload, path: Path, database: Database, settings: Settings) -> Found:
    from worker.lab import user_model  # noqa: PLC0415  # brings torch

    header = user_model.read_header(path)
    asked = upload.request
    if asked["model"] is not None:
        model, shape = _MODEL.validate_python(asked["model"]), Shape.model_validate(asked["shape"])
    else:
        spec = user_model.read_exported_spec(header.labels)
        if spec is None:
            raise user_model.BadModelError(
                "the header does not say what the model is; send metadata with model, and dataset or shape"
            )
        try:
            with database.of(upload.owner_id).reading() as session:
                model, shape = (
                    spec.model,
                    resolve_dataset(session, spec.dataset, settings.datasets).facts.shape,
                )
        except InvalidError as error:
            name = spec.dataset.dataset_id if isinstance(spec.dataset, Uploaded) else spec.dataset.name
            raise user_model.BadModelError(
                f"the header names the data set {name!r}, which is not here; send metadata with model and shape"
            ) from error
    found = user_model.load_user_model(path, model, shape)
    network = user_model.build_empty_network(model, shape, found.adds_trigger)
    facts = {
        "model": model.model_dump(mode="json"),
        "shape": shape.model_dump(mode="json"),
        "stamped": found.adds_trigger,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "labels": {
            name: _printable(header.labels[name])[:LONGEST_NAME] for name in LABELS if name in header.labels
        },
    }
    return Found(facts)


def _look_at_dataset(upload: Upload, path: Path, objects: Objects, most_bytes: int) -> Found:
    from worker.lab.data import files  # noqa: PLC0415
    from worker.lab.data.checking import BadSourceError  # noqa: PLC0415
    from worker.lab.data.importing import read_source  # noqa: PLC0415

    asked = upload.request
    checked = read_source(
        path,
        test_fraction=asked["test_fraction"],
        split_seed=asked["split_seed"],
        size=asked["size"],
        most_bytes=most_bytes,
    )
    names = checked.class_names
    if not 2 <= len(names) <= MOST_CLASSES:
        raise BadSourceError(f"there are {len(names)} classes; 2 to {MOST_CLASSES} are accepted")
    for name in names:
        if len(name) > LONGEST_NAME or "\0" in name or not name.isprintable():
            raise BadSourceError(
                f"the class name {name[:50]!r} is not accepted; at most {LONGEST_NAME} printable characters are"
            )
    converted = path.with_name("converted.safetensors")
    facts, version = files.write(converted, **vars(checked))
    objects.put_file(dataset_key(upload.id), converted)
    return Found(facts.model_dump(mode="json"), version)


def _finish(database: Database, objects: Objects, upload: Upload, found: Found) -> str | None:
    """Write what was found. None, and nothing written, if the upload is gone or another attempt's."""
    with database.writing() as session:
        row = repository.still_owned(session, upload)
        gone = row is None and repository.get(session, upload.kind, upload.id) is None
        if row is not None:
            row.status = READY if found.reason is None else REFUSED
            row.reason = None if found.reason is None else _printable(found.reason)
            row.facts, row.version = found.facts, found.version
            row.checked_at, row.claimed_until = utcnow(), None
            outbox.emit_upload_event(session, row)
    if row is None and not gone:
        return None
    # Nobody reads these again: a refused file, a data set that was converted, one that was deleted meanwhile.
    spent = (
        [source_key(upload.id)]
        if gone or row is None or row.status == REFUSED or upload.kind != MODEL
        else []
    )
    for key in [*spent, *([dataset_key(upload.id)] if gone else [])]:
        try:
            objects.delete(key)
        except ObjectStoreError as error:
            log.warning("a file was left behind: %s", error)
    return row.status if row is not None else None


def _release(database: Database, upload: Upload) -> None:
    """Have the upload checked again soon; this attempt does not count."""
    with database.writing() as session:
        row = repository.still_owned(session, upload)
        if row is not None:
            row.claimed_until = None
            row.attempts -= 1
            row.due_at = utcnow() + timedelta(seconds=AGAIN_SECONDS)


def _in_words_of_the_api(message: str, folder: Path) -> str:
    """An error of `bdlab data import`, whose options are fields here."""
    for option in ("test-fraction", "size", "test"):
        message = message.replace(f"--{option}", option.replace("-", "_"))
    return message.replace(f"{folder}/", "")


def _printable(text: str) -> str:
    """``text`` as every database can keep it."""
    return text.replace("\0", "?").encode(errors="replace").decode()[:REASON_CHARACTERS]


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit("the worker shuts down")
