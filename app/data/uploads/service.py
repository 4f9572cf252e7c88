"""What can be done with uploads. Every function has committed when it returns."""

import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from fastapi.concurrency import run_in_threadpool
from pydantic import ValidationError
from sqlalchemy.exc import IntegrityError

from app.core.context import Context
from app.core.database import database_now, new_id
from app.core.errors import ConflictError, InvalidError, TooLargeError, TooManyError, require
from app.core.objects import ObjectStoreError
from app.core.pagination import paginate_by_age
from app.core.routing import JsonError, parse_json
from app.core.validation import field_errors
from app.data.resolve import resolve_dataset
from app.data.uploads import repository
from app.data.uploads.schemas import DatasetMetadata, Metadata, ModelMetadata
from app.data.uploads.streaming import Form
from app.specs.base import digest
from app.specs.dataset import ENCODINGS, is_text_encoding
from app.tables.uploads import DATASET, MODEL, Upload, dataset_key, source_key
from app.team.quotas import QUOTAS, admit_bytes, free_bytes

FORM_OVERHEAD = 128 * 1024
METADATA: dict[str, type[Metadata]] = {MODEL: ModelMetadata, DATASET: DatasetMetadata}
log = logging.getLogger(__name__)


async def receive(
    context: Context, kind: str, content_type: str, length: int | None, body: AsyncIterator[bytes]
) -> tuple[Upload, bool]:
    """Stream a form's file to the object store, then write its row, which makes the relay send it to a worker.

    Returns the upload and False, or the existing upload of the same file with the same fields and True.
    Raises BadRequestError, InvalidError, MediaTypeError, StalledError, TooLargeError, TooManyError.
    """
    limit = context.settings.max_upload_bytes
    if length is not None and length > limit + FORM_OVERHEAD:
        raise TooLargeError(f"file: at most {limit} bytes are allowed; the body has {length}")
    free = await run_in_threadpool(_admit, context, length or 0)
    owner, arriving, counted = context.principal.owner_id, context.arriving, 0

    def count(size: int) -> None:
        """Count with all that arrives for the owner: several uploads at once must not exceed the limit either."""
        nonlocal counted
        counted += size
        arriving[owner] += size
        if free is not None and arriving[owner] > free:
            limit = context.principal.limits.bytes
            message = f"file: the limit is {limit} stored bytes; {max(free, 0)} were free"
            raise TooManyError(message, retry_after=QUOTAS["bytes"].retry_after)

    upload_id, form = new_id(), Form(content_type, limit, count)
    created = False
    try:
        await context.objects.put_stream(source_key(upload_id), form.file(body))
        upload, created = await run_in_threadpool(_create, context, kind, upload_id, form)
    finally:
        arriving[owner] -= counted
        if not created:
            await run_in_threadpool(_delete_objects, context, [source_key(upload_id)])
    return upload, not created


def get(context: Context, kind: str, upload_id: str) -> Upload:
    """Raises NotFoundError."""
    with context.database.reading() as session:
        return require(repository.get(session, kind, upload_id), kind, upload_id)


def listing(
    context: Context, kind: str, status: str | None, cursor: str | None, limit: int
) -> tuple[Sequence[Upload], str | None]:
    """One page, newest first, and the cursor of the next one if there is one. Raises BadRequestError."""
    with context.database.reading() as session:
        return paginate_by_age(
            context.signer,
            ["uploads", kind, status],
            cursor,
            limit,
            lambda after, most: repository.page(session, kind, status, after, most),
        )


def remove(context: Context, kind: str, upload_id: str) -> None:
    """Delete an upload and its file. Raises NotFoundError, ConflictError while an experiment's spec names it."""
    with context.database.writing() as session:
        upload = require(repository.lock(session, kind, upload_id), kind, upload_id)
        if (experiment := repository.experiment_using(session, kind, upload_id)) is not None:
            raise ConflictError(
                f"the {kind} is named by the spec of experiment {experiment}; "
                "it can be deleted once no experiment names it"
            )
        session.delete(upload)
    _delete_objects(context, [source_key(upload_id), dataset_key(upload_id)])


def _delete_objects(context: Context, keys: list[str]) -> None:
    for key in keys:
        try:
            context.objects.delete(key)
        except ObjectStoreError as error:  # housekeeping deletes orphans
            log.warning("an orphaned file was not deleted: %s", error)


def _admit(context: Context, size: int) -> int | None:
    """Refuse an upload that says that it is too large. Returns how many bytes are free; None: any number."""
    with context.database.reading() as session:
        admit_bytes(session, size)
        return free_bytes(session)


def _create(context: Context, kind: str, upload_id: str, form: Form) -> tuple[Upload, bool]:
    """The new row and True, or the existing row of the same upload and False."""
    metadata = _metadata(METADATA[kind], form.metadata)
    if metadata.sha256 is not None and metadata.sha256 != form.digest:
        raise InvalidError.of(
            "sha256", metadata.sha256, f"the file that arrived has the SHA-256 {form.digest}"
        )
    file_name = PurePosixPath((form.file_name or "").replace("\\", "/")).name[:200]
    name = metadata.name or file_name
    if "\0" in name:
        raise InvalidError.of("name", name, "the character U+0000 cannot be stored")
    request = _request(context, metadata, file_name)
    request_hash = digest([kind, form.digest, name, request])
    row = Upload(
        id=upload_id,
        kind=kind,
        name=name,
        size=form.size,
        stored_bytes=form.size,
        sha256=form.digest,
        request=request,
        request_hash=request_hash,
    )
    try:
        with context.database.writing() as session:
            if (existing := repository.find_same(session, kind, request_hash)) is not None:
                return existing, False
            admit_bytes(session, form.size)
            row.created_at = row.due_at = database_now(session)
            session.add(row)
        return row, True
    except IntegrityError:
        # The same upload twice at once: the other one committed first.
        with context.database.reading() as session:
            existing = repository.find_same(session, kind, request_hash)
        if existing is None:
            raise
        return existing, False


def _metadata(kind: type[Metadata], text: bytes | None) -> Metadata:
    try:
        return kind.model_validate(parse_json(text or b"{}"))
    except JsonError as error:
        raise InvalidError.of("metadata", None, str(error)) from error
    except ValidationError as error:
        located = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        errors = field_errors(located, kind)
        for one in errors:
            one["field"] = "metadata" if one["field"] == "body" else f"metadata.{one['field']}"
        raise InvalidError.of_all(errors) from error


def _request(context: Context, metadata: Metadata, file_name: str) -> dict[str, Any]:
    """The fields that the check needs."""
    fields = metadata.model_dump(mode="json", exclude={"name", "sha256"})
    if isinstance(metadata, DatasetMetadata):
        fields["format"] = metadata.format or PurePosixPath(file_name).suffix.lower().removeprefix(".")
        if fields["format"] not in ("npz", "zip", "parquet"):
            raise InvalidError.of(
                "format",
                fields["format"],
                "allowed: npz, zip, parquet; or a file name that ends with one of them",
            )
        if metadata.size is not None and fields["format"] == "npz":
            raise InvalidError.of(
                "size", metadata.size, "allowed: null; the arrays of an npz are not resized"
            )
        if metadata.zip_encoding is not None:
            if fields["format"] != "zip":
                raise InvalidError.of(
                    "zip_encoding", metadata.zip_encoding, "allowed: null, since the file is not a zip"
                )
            if not is_text_encoding(metadata.zip_encoding):
                raise InvalidError.of("zip_encoding", metadata.zip_encoding, f"allowed: {ENCODINGS}")
    elif isinstance(metadata, ModelMetadata) and metadata.dataset is not None:
        with context.database.reading() as session:
            facts = resolve_dataset(session, metadata.dataset, context.settings.datasets).facts
        fields["shape"] = facts.shape.model_dump(mode="json")
        del fields["dataset"]
    return fields
