"""Uploads in the typed client: ``client.models`` and ``client.datasets``."""

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bdlab.errors import WaitTimeoutError

if TYPE_CHECKING:
    from bdlab.base_client import Client

Json = dict[str, Any]


class _Uploads:
    """What models and data sets have in common."""

    path: str
    name: str

    def __init__(self, client: "Client") -> None:
        self._client = client

    def upload(self, file: Path, **metadata: Any) -> Json:
        """Send a file with the fields of the route's metadata; it is read piece by piece.

        The answer is pending; see `wait`. Its digest goes with it, so a file that was damaged on its way is refused.
        Sending the same again gives the same upload.
        """
        with file.open("rb") as handle:
            metadata["sha256"] = hashlib.file_digest(handle, "sha256").hexdigest()
            handle.seek(0)
            form = {
                "metadata": (None, json.dumps(metadata), "application/json"),
                "file": (file.name, handle, "application/octet-stream"),
            }
            return self._client._object("POST", self.path, files=form)

    def wait(self, id: str, *, timeout: float | None = None) -> Json:
        """Poll until a worker has checked it: its status is then ready, or refused with a reason.

        Raises WaitTimeoutError after ``timeout`` seconds.
        """
        end = None if timeout is None else time.monotonic() + timeout
        pause = 0.2
        while (found := self.get(id))["status"] == "pending":
            if end is not None and time.monotonic() + pause > end:
                raise WaitTimeoutError(f"{id} is still pending after {timeout:g} s")
            time.sleep(pause)
            pause = min(pause * 1.3, 2.0)
        return found

    def list(self, **query: Any) -> Iterator[Json]:
        """All, newest first, page by page; ``query``: status, and limit, the size of a page."""
        page = self._client._object("GET", self.path, params=query, repeat=True)
        while True:
            yield from page[self.name]
            if not page["next"]:
                return
            page = self._client._object("GET", page["next"], repeat=True)

    def get(self, id: str) -> Json:
        """What it is, and what its check found."""
        return self._client._object("GET", f"{self.path}/{id}", repeat=True)

    def delete(self, id: str) -> None:
        """Delete it; refused while the spec of an experiment names it."""
        self._client._call("DELETE", f"{self.path}/{id}")


class Models(_Uploads):
    """Networks in safetensors files. Metadata: name, model, dataset or shape; see docs/uploads.md."""

    path, name = "/v1/models", "models"


class Datasets(_Uploads):
    """Data sets as npz, zip or parquet. Metadata: name, format, test_fraction, split_seed, size."""

    path, name = "/v1/datasets", "datasets"
