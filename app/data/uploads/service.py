"""What can be done with uploads. Every function has committed when it returns."""

import logging
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from fastapi.concurrency import run_in_threadpool
from pydantic import ValidationError
from sqlalchemy.exc import IntegrityError

from app.core import pagination
from app.core.context import Context
from app.core.database import new_id, utcnow
from app.core.errors import ConflictError, InvalidError, NotFoundError, TooLargeError, summary
from app.core.objects import ObjectStoreError
from app.core.validation import FieldError, field_errors, shown
from app.data.resolve import resolve_dataset
from app.data.uploads import repository
from app.data.uploads.schemas import DatasetMetadata, Metadata, ModelMetadata
from app.data.uploads.streaming import CLOSE, Form
from app.specs.base import digest
from app.tables.uploads import DATASET, Upload, dataset_key, source_key
from app.team.quotas import admit_bytes

FORM_OVERHEAD = 128 * 1024
METADATA: dict[str, type[Metadata]] = {"model": ModelMetadata, "dataset": DatasetMetadata}
log = logging.getLogger(__name__)


async def receive(
    context: Context, kind: str, content_type: str, length: int | None, body: AsyncIterator[bytes]
) -> tuple[Upload, bool]:
    """Stream a form's file to the object store, then write its row, from which the relay announces it.

    Returns the upload, and True if the same file with the same fields was here before: then that one.
    Raises BadRequestError, InvalidError, MediaTypeError, StalledError, TooLargeError, TooManyError.
    """
    limit = context.settings.max_upload_bytes
    if length is not None and length > limit + FORM_OVERHEAD:
        raise TooLargeError(f"file: at most {limit} bytes are allowed; the body has {length}", headers=CLOSE)
    await run_in_threadpool(_admit, context, length or 0)
    upload_id, form = new_id(), Form(content_type, limit)
    kept = False
    try:
        await context.objects.put_stream(source_key(upload_id), form.file(body))
        upload, kept = await run_in_threadpool(_create, context, kind, upload_id, form)
    finally:
        if not kept:
            await run_in_threadpool(delete_objects, context, [source_key(upload_id)])
    return upload, not kept


def get(context: Context, kind: str, upload_id: str) -> Upload:
    """Raises NotFoundError."""
    with context.database.reading() as session:
        return _found(repository.get(session, kind, upload_id), kind, upload_id)


def listing(
    context: Context, kind: str, status: str | None, cursor: str | None, limit: int
) -> tuple[list[Upload], str | None]:
    """One page, the newest first, and the next one's cursor if there is one. Raises BadRequestError."""
    query, after = ["uploads", kind, status], None
    if cursor is not None:
        created_at, last_id = pagination.decode(context.signer, query, cursor)
        after = (datetime.fromisoformat(created_at), last_id)
    with context.database.reading() as session:
        rows = list(repository.page(session, kind, status, after, limit + 1))
    if len(rows) <= limit:
        return rows, None
    last = rows[limit - 1]
    return rows[:limit], pagination.encode(context.signer, query, [last.created_at.isoformat(), last.id])


def remove(context: Context, kind: str, upload_id: str) -> None:
    """Delete an upload and its file. Raises NotFoundError, ConflictError while an experiment's spec names it."""
    with context.database.writing() as session:
        upload = _found(repository.lock(session, kind, upload_id), kind, upload_id)
        if (experiment := repository.user(session, kind, upload_id)) is not None:
            raise ConflictError(
                f"the {kind} is named by the spec of experiment {experiment}; "
                "it can be deleted once no experiment names it"
            )
        session.delete(upload)
    delete_objects(context, [source_key(upload_id), dataset_key(upload_id)])


def delete_objects(context: Context, keys: list[str]) -> None:
    """Delete objects that no row names."""
    for key in keys:
        try:
            context.objects.delete(key)
        except ObjectStoreError as error:  # a file that nobody refers to does no harm
            log.warning("a file was left behind: %s", error)


def _admit(context: Context, size: int) -> None:
    with context.database.reading() as session:
        admit_bytes(session, size)


def _create(context: Context, kind: str, upload_id: str, form: Form) -> tuple[Upload, bool]:
    """The new row and True, or the row of the same upload from before and False."""
    metadata = _metadata(METADATA[kind], form.metadata)
    if metadata.sha256 is not None and metadata.sha256 != form.digest:
        raise _fault("sha256", metadata.sha256, f"the file that arrived has the SHA-256 {form.digest}")
    file_name = PurePosixPath((form.file_name or "").replace("\\", "/")).name[:200]
    name = metadata.name or file_name
    if "\0" in name:
        raise _fault("name", shown(name), "the character U+0000 cannot be stored")
    request = _request(context, metadata, file_name)
    request_hash = digest([kind, form.digest, name, request])
    now = utcnow()
    row = Upload(
        id=upload_id,
        kind=kind,
        name=name,
        size=form.size,
        sha256=form.digest,
        request=request,
        request_hash=request_hash,
        created_at=now,
        due_at=now,
    )
    try:
        with context.database.writing() as session:
            if (before := repository.same(session, kind, request_hash)) is not None:
                return before, False
            admit_bytes(session, form.size)
            session.add(row)
        return row, True
    except IntegrityError:
        # Two of the same at once: the other one was first.
        with context.database.reading() as session:
            before = repository.same(session, kind, request_hash)
        if before is None:
            raise
        return before, False


def _metadata(kind: type[Metadata], text: bytes | None) -> Metadata:
    try:
        return kind.model_validate_json(text or b"{}")
    except ValidationError as error:
        located = [{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]
        faults = field_errors(located, kind)
        for fault in faults:
            fault["field"] = "metadata" if fault["field"] == "body" else f"metadata.{fault['field']}"
        raise InvalidError(summary(faults), faults) from error


def _request(context: Context, metadata: Metadata, file_name: str) -> dict[str, Any]:
    """What the check needs to know."""
    fields = metadata.model_dump(mode="json", exclude={"name", "sha256"})
    if isinstance(metadata, DatasetMetadata):
        fields["format"] = metadata.format or PurePosixPath(file_name).suffix.lower().removeprefix(".")
        if fields["format"] not in ("npz", "zip", "parquet"):
            raise _fault("format", shown(fields["format"]), "allowed: npz, zip, parquet; or name the file so")
        if metadata.size is not None and fields["format"] == "npz":
            raise _fault("size", metadata.size, "allowed: null; arrays in an npz are taken as they are")
    elif isinstance(metadata, ModelMetadata) and metadata.dataset is not None:
        with context.database.reading() as session:
            facts = resolve_dataset(session, metadata.dataset, context.settings.datasets).facts
        fields["shape"] = facts.shape.model_dump(mode="json")
        del fields["dataset"]
    return fields


def _found(upload: Upload | None, kind: str, upload_id: str) -> Upload:
    if upload is None:
        raise NotFoundError(f"there is no {'data set' if kind == DATASET else kind} {shown(upload_id)}")
    return upload


def _fault(name: str, value: Any, message: str) -> InvalidError:
    return InvalidError(f"{name}: {message}", [FieldError(field=name, value=value, message=message)])
