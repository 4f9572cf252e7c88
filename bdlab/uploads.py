"""``client.models`` and ``client.datasets``: files that the user uploads."""

import hashlib
import json
from pathlib import Path
from typing import Any

from bdlab.transport import Resources, poll
from bdlab.types import Json


class Uploads(Resources):
    """Uploaded models (safetensors) or datasets (npz, zip, parquet). One that an experiment refers to is not deleted.

    Metadata of a model: name, model, dataset or shape. Of a dataset: name, format, test_fraction, split_seed, size,
    zip_encoding. See docs/uploads.md.
    """

    def upload(self, file: Path, **metadata: Any) -> Json:
        """Stream a file to the service, with its metadata and SHA-256 digest. Returns the pending upload; see `wait`.

        Uploading the same file with the same metadata again returns the same upload.
        """
        with file.open("rb") as handle:
            metadata["sha256"] = hashlib.file_digest(handle, "sha256").hexdigest()
            handle.seek(0)
            form = {
                "metadata": (None, json.dumps(metadata), "application/json"),
                "file": (file.name, handle, "application/octet-stream"),
            }
            return self._transport.post(self._path, files=form)

    def wait(self, id: str, *, timeout: float | None = None) -> Json:
        """Poll until a worker has checked the upload: its status is then ready, or refused with a reason.

        Raises WaitTimeoutError after ``timeout`` seconds.
        """
        return poll(lambda: self.get(id), id, ("ready", "refused"), timeout=timeout)
