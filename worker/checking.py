"""Checks uploads: is the file valid, and is it safe to use?

A worker claims the row of an upload in the order of its owners' turns; the attempt number is the fencing token. If the
worker dies, the claim expires and the relay publishes the upload again.
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
from app.core.database import Database, database_now, utcnow
from app.core.errors import InvalidError, TooManyError
from app.core.objects import Objects, ObjectStoreError
from app.data.resolve import resolve_dataset
from app.data.uploads import repository
from app.settings import Settings
from app.specs.dataset import Uploaded
from app.specs.facts import Shape
from app.specs.model import ModelSpec
from app.tables.owners import Owner
from app.tables.uploads import MODEL, READY, REFUSED, Upload, dataset_key, source_key
from app.team.quotas import admit_bytes, limits_of
from app.webhooks import outbox
from worker.lab.contracts import LabError
from worker.lab.data.checking import BadSourceError
from worker.memory import limit_memory

REASON_CHARACTERS = 1000
MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE)
"""Errors of this machine; other OSErrors while a local file is read are caused by its content."""
RETRY_SECONDS = 10.0
OVERHEAD_BYTES = 768 * 2**20
"""Memory that libraries need to read any file."""
COPIES = 3
"""How many copies of a dataset's pixels are in memory at once while it is converted."""
MAX_LABEL_CHARACTERS = 200
LABELS = ("arm", "seed", "backdoored")
_MODEL: TypeAdapter[ModelSpec] = TypeAdapter(ModelSpec)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckResult:
    """Facts, and the version of a dataset; or the reason why the file is refused."""

    facts: dict[str, Any] | None = None
    version: str = ""
    reason: str | None = None


def check(hint: str, settings: Settings) -> str | None:
    """Check the upload whose turn it is; a message is only a ``hint`` that one is pending.

    Returns its new status, or None if none was pending or the check is to be retried.
    """
    database, objects = Database(settings.database), Objects(settings.objects)
    try:
        with database.writing() as session:
            upload = repository.claim_next(session, hint, settings.check_seconds)
        if upload is None:
            return None
        with (
            upload.bind_origin(upload_id=upload.id, owner_id=upload.owner_id, attempt=upload.attempts),
            tracing.span("check upload", kind="consumer", parent=upload.traceparent) as span,
        ):
            status = _run_check(upload, database, objects, settings)
            span.set_attribute("outcome", status or "none")
            log.info("check ended", extra={"outcome": status})
        metrics.CHECKS.labels(status or "none").inc()
        return status
    finally:
        database.close()


def _run_check(upload: Upload, database: Database, objects: Objects, settings: Settings) -> str | None:
    previous_handler = signal.signal(signal.SIGTERM, _stop)
    try:
        if upload.attempts > settings.max_attempts:
            result = CheckResult(
                reason=f"its check was started {settings.max_attempts} times and never finished"
            )
        else:
            with tempfile.TemporaryDirectory(prefix="bdlab-check-") as folder:
                result = _check_file(upload, Path(folder), database, objects, settings)
    except (ObjectStoreError, OSError) as error:
        log.warning("%s; the check will be retried", error)
        _release(database, upload)
        return None
    except SystemExit:
        _release(database, upload)
        raise
    finally:
        signal.signal(signal.SIGTERM, previous_handler)
    return _record(database, objects, upload, result)


def _check_file(
    upload: Upload, folder: Path, database: Database, objects: Objects, settings: Settings
) -> CheckResult:
    suffix = "safetensors" if upload.kind == MODEL else upload.request["format"]
    path = folder / f"file.{suffix}"
    digest = objects.download(source_key(upload.id), path)
    if digest != upload.sha256:
        return CheckResult(reason=f"the stored file is {'missing' if digest is None else 'damaged'}")
    try:
        if upload.kind == MODEL:
            return _check_model(upload, path, database, settings)
        with limit_memory(COPIES * settings.max_dataset_bytes + OVERHEAD_BYTES):
            return _check_dataset(upload, path, database, objects, settings)
    except Exception as error:
        return CheckResult(reason=_refusal_reason(error, folder))


def _refusal_reason(error: Exception, folder: Path) -> str:
    """Why the file is refused. Raises ``error`` if the file did not cause it."""
    if isinstance(error, ObjectStoreError | SQLAlchemyError):
        raise error
    if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
        raise error
    if isinstance(error, LabError):
        message = error.api_message if isinstance(error, BadSourceError) else str(error)
        return message.replace(f"{folder}/", "")
    if isinstance(error, TooManyError):
        return f"the dataset would take more bytes than its owner may store: {error.detail}"
    if isinstance(error, MemoryError):
        return "reading the file takes more memory than a dataset of the allowed size requires"
    # Third-party readers raise arbitrary exceptions on malformed files.
    log.warning("the file cannot be read", exc_info=error)
    return f"the file cannot be read: {type(error).__name__}"


def _check_model(upload: Upload, path: Path, database: Database, settings: Settings) -> CheckResult:
    from worker.lab import user_model  # noqa: PLC0415  # imports torch

    header = user_model.read_header(path)
    request = upload.request
    if request["model"] is not None:
        model, shape = _MODEL.validate_python(request["model"]), Shape.model_validate(request["shape"])
    else:
        spec = user_model.read_exported_spec(header.labels)
        if spec is None:
            raise user_model.BadModelError(
                "the header does not say what the model is; send metadata with model, and dataset or shape"
            )
        try:
            with database.of(upload.owner_id).reading() as session:
                shape = resolve_dataset(session, spec.dataset, settings.datasets).facts.shape
        except InvalidError as error:
            name = spec.dataset.dataset_id if isinstance(spec.dataset, Uploaded) else spec.dataset.name
            raise user_model.BadModelError(
                f"the header names the dataset {name!r}, which does not exist; send metadata with model and shape"
            ) from error
        model = spec.model
    loaded = user_model.load_user_model(path, model, shape)
    network = user_model.build_empty_network(model, shape, loaded.adds_trigger)
    facts = {
        "model": model.model_dump(mode="json"),
        "shape": shape.model_dump(mode="json"),
        "stamped": loaded.adds_trigger,
        "mapped": loaded.mapped,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "labels": {
            name: _printable(header.labels[name])[:MAX_LABEL_CHARACTERS]
            for name in LABELS
            if name in header.labels
        },
    }
    return CheckResult(facts)


def _check_dataset(
    upload: Upload, path: Path, database: Database, objects: Objects, settings: Settings
) -> CheckResult:
    from worker.lab.data import files  # noqa: PLC0415
    from worker.lab.data.importing import read_source  # noqa: PLC0415

    request = upload.request
    checked = read_source(
        path,
        test_fraction=request["test_fraction"],
        split_seed=request["split_seed"],
        size=request["size"],
        most_bytes=settings.max_dataset_bytes,
        zip_encoding=request.get("zip_encoding"),
    )
    converted = path.with_name("converted.safetensors")
    facts, version = files.write(converted, **checked.content)
    _reserve_bytes(upload, converted.stat().st_size, database, settings)
    objects.put_file(dataset_key(upload.id), converted)
    return CheckResult({**facts.model_dump(mode="json"), "notes": checked.notes}, version)


def _reserve_bytes(upload: Upload, size: int, database: Database, settings: Settings) -> None:
    """Count the converted dataset, which may be far larger than the file that was sent, instead of that file.

    Raises TooManyError if its owner may not store so much.
    """
    with database.reading() as session:
        limits = limits_of(session.get_one(Owner, upload.owner_id), settings)
    with database.of(upload.owner_id, limits).writing() as session:
        # The owner's row is locked first, as in every transaction that locks both.
        admit_bytes(session, size - upload.stored_bytes)
        row = repository.still_owned(session, upload)
        if row is not None:
            row.stored_bytes = size


def _record(database: Database, objects: Objects, upload: Upload, result: CheckResult) -> str | None:
    """Write the result. Returns None, and writes nothing, if the upload is deleted or another attempt claimed it."""
    with database.writing() as session:
        row = repository.still_owned(session, upload)
        is_deleted = row is None and repository.get(session, upload.kind, upload.id) is None
        if row is not None:
            row.status = READY if result.reason is None else REFUSED
            if row.status == REFUSED:
                row.stored_bytes = 0
            row.reason = None if result.reason is None else _printable(result.reason)
            row.facts, row.version = result.facts, result.version
            row.checked_at, row.claimed_until = utcnow(), None
            outbox.emit_upload_event(session, row)
    if row is None and not is_deleted:
        return None
    # The sent file is needed only for models: a dataset was converted. A deleted upload needs neither.
    unneeded = []
    if row is None or row.status == REFUSED or upload.kind != MODEL:
        unneeded.append(source_key(upload.id))
    if is_deleted:
        unneeded.append(dataset_key(upload.id))
    for key in unneeded:
        try:
            objects.delete(key)
        except ObjectStoreError as error:
            log.warning("an unneeded file was not deleted: %s", error)
    return row.status if row is not None else None


def _release(database: Database, upload: Upload) -> None:
    """Have the upload checked again in a while; this attempt does not count."""
    with database.writing() as session:
        row = repository.still_owned(session, upload)
        if row is not None:
            row.attempts -= 1
            # Claimed by nobody until then: a message about another upload must not bring it back at once.
            row.claimed_until = row.due_at = database_now(session) + timedelta(seconds=RETRY_SECONDS)


def _printable(text: str) -> str:
    """``text`` as every database can store it, truncated."""
    return text.replace("\0", "?").encode(errors="replace").decode()[:REASON_CHARACTERS]


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit("the worker is shutting down")
