"""Models and data sets to send."""

import io
import json
from typing import Any

import httpx2
import numpy as np

from app.specs.facts import BUILT_IN
from app.specs.model import SmallCnn

MODEL = {"name": "small_cnn", "width": 4}
ABOUT = {"model": MODEL, "dataset": {"name": "digits"}}


def weights(seed: int = 0, labels: dict[str, str] | None = None, **changes: Any) -> bytes:
    """A sound safetensors file of `MODEL` for digits, but for ``changes`` (see tests/lab/test_brought.py)."""
    from safetensors.torch import save  # noqa: PLC0415  # brings torch, which most tests of the API do without

    from worker.lab.networks import build_network  # noqa: PLC0415

    tensors = dict(build_network(SmallCnn(width=4), BUILT_IN["digits"].shape, seed).state_dict())
    return save(tensors | {name.replace("__", "."): tensor for name, tensor in changes.items()}, labels)


def pictures(images: int = 40, **changes: Any) -> bytes:
    """An npz with two classes of 6x5 pictures."""
    drawn = np.random.default_rng(0).integers(0, 256, (images, 6, 5, 3), dtype=np.uint8)
    arrays = {"x_train": drawn, "y_train": np.arange(images) % 2, "x_test": drawn[:4], "y_test": [0, 1, 0, 1]}
    out = io.BytesIO()
    np.savez(out, **{name: array for name, array in {**arrays, **changes}.items() if array is not None})
    return out.getvalue()


def post(
    client: httpx2.Client, path: str, data: bytes, metadata: Any = None, name: str = "my file", **more: Any
) -> httpx2.Response:
    """Send a form to ``path``; ``metadata`` as JSON, or as bytes."""
    form: dict[str, Any] = {"file": (name, data), **more}
    if metadata is not None:
        text = metadata if isinstance(metadata, bytes) else json.dumps(metadata)
        form = {"metadata": (None, text, "application/json"), **form}
    return client.post(path, files=form)


def sent_model(client: httpx2.Client, data: bytes = b"", **metadata: Any) -> str:
    """The id of a model that was sent."""
    answer = post(client, "/v1/models", data or b"no model", ABOUT | metadata)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def sent_dataset(client: httpx2.Client, data: bytes = b"", **metadata: Any) -> str:
    """The id of a data set that was sent."""
    answer = post(client, "/v1/datasets", data or pictures(), {"format": "npz", **metadata})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])
