"""The object store: a local folder (``file:///folder``) or a bucket (``s3://bucket/prefix``), through obstore.

S3 credentials, endpoint and region come from the usual ``AWS_*`` variables.

The keys of files hold the SHA-256 of their content, with which a process compares each state of an object once, before
it returns the first byte: so a download reads an object twice the first time. That takes 0.1 s for the 45 MB of a
ResNet-18 in a folder.
"""

import os
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import anyio.to_thread
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
CONTENT = re.compile(r"sha256/[0-9a-f]{2}/([0-9a-f]{64})")
"""The keys that `content_key` makes."""
MOST_STATES = 100_000
_intact: set[tuple[str, ...]] = set()
"""States of objects that this process has read and found intact, of any store."""


class ObjectStoreError(Exception):
    """The object store refused an operation or is unreachable; a retry may succeed."""


class DamagedObjectError(Exception):
    """An object does not have the SHA-256 in its key. A retry does not help; writing the content again does."""

    def __init__(self, digest: str) -> None:
        super().__init__(
            f"the stored file with the SHA-256 {digest} is damaged; POST /v1/experiments/{{experiment_id}}:retry of "
            "its experiment writes it again"
        )


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
                await anyio.to_thread.run_sync(_sync, Path(str(self._store.prefix)) / key)

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
        """The whole object, or None if it does not exist. Raises DamagedObjectError."""
        with _operation("read", f"cannot read {key!r}"):
            try:
                result = obstore.get(self._store, key)
                data = bytes(result.bytes())
            except FileNotFoundError:
                return None
        if not self._is_intact(key, result.meta):
            self._compare(key, sha256(data).hexdigest(), result.meta)
        return data

    def digest(self, key: str) -> str | None:
        """SHA-256 of the object as it is stored now, or None if it does not exist."""
        found = self._digest(key)
        return found[0] if found is not None else None

    def verify(self, key: str) -> bool:
        """Compare an object with the digest in its key, unless this process has done so in the object's present state.

        Returns False if it does not exist. Raises DamagedObjectError.
        """
        with _operation("head", f"cannot look up {key!r}"):
            try:
                meta = obstore.head(self._store, key)
            except FileNotFoundError:
                return False
        if not self._is_intact(key, meta):
            found = self._digest(key)
            if found is None:
                return False
            self._compare(key, *found)
        return True

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
        """The bytes ``[start, stop)`` of an object in chunks, or None if it does not exist. Raises DamagedObjectError.

        The request is made before this returns, so that a missing or damaged object can be answered with an error.
        """
        options: Any = {"range": (start, stop)} if stop > start else {}
        while await anyio.to_thread.run_sync(self.verify, key):
            with _operation("read", f"cannot read {key!r}"):
                try:
                    result = await obstore.get_async(self._store, key, options=options)
                except FileNotFoundError:
                    return None
            if self._is_intact(key, result.meta):  # else it was written meanwhile
                return _chunks(result, key)
        return None

    def _digest(self, key: str) -> tuple[str, Any] | None:
        """The SHA-256 of the object, and its state."""
        digest = sha256()
        with _operation("read", f"cannot read {key!r}"):
            try:
                result = obstore.get(self._store, key)
                for chunk in result.stream(min_chunk_size=CHUNK):
                    digest.update(chunk)
            except FileNotFoundError:
                return None
        return digest.hexdigest(), result.meta

    def _is_intact(self, key: str, meta: Any) -> bool:
        return CONTENT.fullmatch(key) is None or self._state(key, meta) in _intact

    def _compare(self, key: str, digest: str, meta: Any) -> None:
        """Remember that the object is intact in this state. Raises DamagedObjectError if it is not."""
        if key != content_key(digest):
            raise DamagedObjectError(key.rpartition("/")[2])
        if len(_intact) >= MOST_STATES:
            _intact.clear()
        _intact.add(self._state(key, meta))

    def _state(self, key: str, meta: Any) -> tuple[str, ...]:
        return self._url, key, str(meta["e_tag"]), str(meta["last_modified"])


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
