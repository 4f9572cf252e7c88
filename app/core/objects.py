"""The object store: a local folder (``file:///folder``) or a bucket (``s3://bucket/prefix``), through obstore.

S3 credentials, endpoint and region come from the usual ``AWS_*`` variables.
"""

import os
from asyncio import to_thread
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, from_url

from app.core import metrics
from app.core.database import new_id

ERROR_PREFIX = "object store: "
CHUNK, PART = 256 * 1024, 5 * 2**20
"""Bytes that are read and written at a time; S3 accepts no smaller parts."""
PROBE_PREFIX = "doctor-"
"""Key prefix of test objects; `app.operations.housekeeping` deletes those that a killed process left."""
PROBE = bytes(64 * 1024)
BATCH = 1000
"""Objects in one page of a listing and in one delete request, the limit of S3."""


class ObjectStoreError(Exception):
    """The object store refused an operation or is unreachable; a retry may succeed."""


class Stored(NamedTuple):
    """An object in a listing."""

    key: str
    size: int
    modified: datetime


class Objects:
    """Bytes by key. Writes are atomic: a reader sees the whole object or none."""

    def __init__(self, url: str) -> None:
        """Raises ObjectStoreError if ``url`` cannot be used."""
        self._url: Any = url  # obstore types only some of the URLs that it accepts
        with _operation("open", f"cannot open {url!r}"):
            self._store: Any
            if url.startswith("file://"):
                self._store = LocalStore(unquote(url.removeprefix("file://")), mkdir=True)
            else:
                retry: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=15)}
                self._store = from_url(url, retry_config=retry)

    def put(self, key: str, data: bytes) -> None:
        """Write an object; replaces an existing one."""
        with _operation("write", f"cannot write {key!r}"):
            obstore.put(self._store, key, data)

    async def put_stream(self, key: str, pieces: AsyncIterator[bytes]) -> None:
        """Write an object from ``pieces``, keeping a few MiB in memory. If they raise, nothing is stored.

        The object outlasts a power cut, unlike those of the other methods in a folder, which can be computed again.
        """
        with _operation("write_stream", f"cannot write {key!r}"):
            await obstore.put_async(self._store, key, pieces, chunk_size=PART, max_concurrency=2)
            if isinstance(self._store, LocalStore):
                await to_thread(_sync, Path(str(self._store.prefix)) / key)

    def download(self, key: str, path: Path) -> str | None:
        """Write the object to a file in chunks. Returns its SHA-256, or None if it does not exist."""
        digest = sha256()
        with path.open("wb") as file, _operation("read", f"cannot read {key!r}"):
            try:
                for chunk in obstore.get(self._store, key).stream(min_chunk_size=CHUNK):
                    digest.update(chunk)
                    file.write(chunk)
            except FileNotFoundError:
                return None
        return digest.hexdigest()

    def put_file(self, key: str, path: Path) -> None:
        """Write an object from a file in parts."""
        with _operation("write", f"cannot write {key!r}"):
            obstore.put(self._store, key, path, chunk_size=PART, max_concurrency=2)

    def get(self, key: str) -> bytes | None:
        """The whole object, or None if it does not exist."""
        with _operation("read", f"cannot read {key!r}"):
            try:
                return bytes(obstore.get(self._store, key).bytes())
            except FileNotFoundError:
                return None

    def check(self) -> None:
        """Write and delete an object. Raises ObjectStoreError."""
        key = f"{PROBE_PREFIX}{new_id()}"
        try:
            self.put(key, PROBE)
        finally:
            self.delete(key)

    def exists(self, key: str) -> bool:
        with _operation("head", f"cannot look up {key!r}"):
            try:
                obstore.head(self._store, key)
            except FileNotFoundError:
                return False
            return True

    def delete(self, key: str) -> None:
        """Delete an object if it exists."""
        with _operation("delete", f"cannot delete {key!r}"):
            try:
                obstore.delete(self._store, key)
            except FileNotFoundError:
                return

    def signed_url(self, key: str, seconds: int, endpoint: str = "") -> str | None:
        """A presigned URL that anyone can use to read the object until it expires; None if the store is a folder.

        ``endpoint`` is the store's address for clients, if it differs from the service's. The object need not exist.
        """
        if isinstance(self._store, LocalStore):
            return None
        with _operation("sign", f"cannot sign a link to {key!r}"):
            store: Any = from_url(self._url, endpoint=endpoint) if endpoint else self._store
            return str(obstore.sign(store, "GET", key, timedelta(seconds=seconds)))

    def delete_all(self, keys: Iterable[str]) -> None:
        """Delete the objects that exist, in batches."""
        ordered = sorted(keys)
        for start in range(0, len(ordered), BATCH):
            chunk = ordered[start : start + BATCH]
            with _operation("delete", f"cannot delete {chunk[0]!r} and {len(chunk) - 1} more"):
                try:
                    obstore.delete(self._store, chunk)
                    continue
                except FileNotFoundError:  # a folder stops at the first missing object
                    pass
            for key in chunk:
                self.delete(key)

    def listing(self) -> Iterator[list[Stored]]:
        """Every object, in pages."""
        with _operation("list", "cannot list"):
            for page in obstore.list(self._store, chunk_size=BATCH):
                yield [Stored(meta["path"], meta["size"], meta["last_modified"]) for meta in page]

    def list_all(self) -> dict[str, Stored]:
        """Every object by its key."""
        return {stored.key: stored for page in self.listing() for stored in page}

    async def stream(self, key: str, start: int, stop: int) -> AsyncIterator[bytes] | None:
        """The bytes ``[start, stop)`` of an object in chunks, or None if it does not exist.

        The request is made before this returns, so that a missing object can still be answered with an error.
        """
        with _operation("read", f"cannot read {key!r}"):
            options: Any = {"range": (start, stop)} if stop > start else {}
            try:
                result = await obstore.get_async(self._store, key, options=options)
            except FileNotFoundError:
                return None
        return _chunks(result, key)


def content_key(digest: str) -> str:
    """The key of content with this SHA-256."""
    return f"sha256/{digest[:2]}/{digest}"


def put_content(objects: Objects, data: bytes) -> tuple[str, str]:
    """Store ``data`` under its hash. Returns the SHA-256 in hexadecimal and the key."""
    digest = sha256(data).hexdigest()
    key = content_key(digest)
    objects.put(key, data)
    return digest, key


def _sync(path: Path) -> None:
    """Have the file, and its name in its folder, written to the disk."""
    for one in (path, path.parent):
        descriptor = os.open(one, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


async def _chunks(result: Any, key: str) -> AsyncIterator[bytes]:
    with _operation("read_stream", f"cannot read {key!r}"):
        async for chunk in result.stream(min_chunk_size=CHUNK):
            yield bytes(chunk)


@contextmanager
def _operation(name: str, failed: str) -> Iterator[None]:
    """Time and count an operation. Converts the store's exceptions to ObjectStoreErrors that start with ``failed``."""
    with metrics.OBJECTS_SECONDS.labels(name).time():
        try:
            yield
        except (BaseError, OSError, ValueError) as error:
            metrics.OBJECTS_ERRORS.labels(name).inc()
            reason = str(error).partition("\n")[0]  # the rest is a dump of Rust structures
            raise ObjectStoreError(f"{ERROR_PREFIX}{failed}: {reason}") from error
