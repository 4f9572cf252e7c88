"""Artifacts as arrays, pictures and trained models.

Reading raises MissingPackageError if a package that it needs is not installed."""

import io
import json
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bdlab.errors import UnsuitableFileError
from bdlab.optional import optional_import
from bdlab.types import Artifact, Json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from app.specs.facts import DatasetFacts
    from worker.lab.networks import Network

FRAMES, WORKER = "backdoor-lab[frames]", "backdoor-lab[worker]"
LENGTH_BYTES = 8
"""A safetensors file begins with the length of its JSON header, little-endian."""


class BackdooredModelWarning(UserWarning):
    """The loaded model was trained on poisoned data."""


def require_suffix(artifact: Artifact, *allowed: str) -> str:
    """The suffix of the artifact's name. Raises UnsuitableFileError unless it is ``allowed``."""
    suffix = artifact["name"].rpartition(".")[2]
    if suffix not in allowed:
        *names, last = [f".{name}" for name in allowed]
        raise _unsuitable(artifact, f"{', '.join(names)} and {last} are")
    return suffix


def require_image(artifact: Artifact) -> None:
    """Raises UnsuitableFileError unless the artifact is a picture."""
    if not artifact["media_type"].startswith("image/"):
        raise _unsuitable(artifact, "pictures are")


def read_arrays(data: bytes, suffix: str) -> "dict[str, NDArray[Any]]":
    """Arrays of an npz, tensors of a safetensors, columns of a csv or parquet file, by name."""
    if suffix == "safetensors":
        return dict(optional_import("safetensors.numpy", FRAMES).load(data))
    file = io.BytesIO(data)
    if suffix == "npz":
        with optional_import("numpy", FRAMES).load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    if suffix == "csv":
        table = optional_import("pyarrow.csv", FRAMES).read_csv(file)
    else:
        table = optional_import("pyarrow.parquet", FRAMES).read_table(file)
    return {name: table[name].to_numpy() for name in table.column_names}


def read_image(data: bytes) -> "NDArray[np.uint8]":
    """An encoded picture, uint8 ``[H, W, C]``, or ``[H, W]`` in grayscale."""
    from app.specs.pictures import FORMATS  # noqa: PLC0415  # importing the client loads no specs

    numpy, pillow = optional_import("numpy", FRAMES), optional_import("PIL.Image", FRAMES)
    with pillow.open(io.BytesIO(data), formats=FORMATS) as picture:
        pixels: NDArray[np.uint8] = numpy.asarray(picture, dtype=numpy.uint8)
    return pixels


def require_worker() -> None:
    """Raises MissingPackageError unless models can be loaded."""
    for module in ("safetensors.torch", "worker.lab.networks.loading"):
        optional_import(module, WORKER)


def load_network(
    data: bytes, find_facts: "Callable[[Json], DatasetFacts]", device: str, name: str
) -> "Network":
    """The network in a model.safetensors, in eval mode. ``find_facts`` gives the facts of a dataset spec.

    Emits a BackdooredModelWarning with ``name`` if it was trained on poisoned data.
    """
    from pydantic import TypeAdapter  # noqa: PLC0415  # all of these are slow to import
    from safetensors.torch import load  # noqa: PLC0415

    from app.specs.model import ModelSpec  # noqa: PLC0415
    from worker.lab.networks.loading import load_model  # noqa: PLC0415

    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    metadata = json.loads(data[LENGTH_BYTES : LENGTH_BYTES + length])["__metadata__"]
    spec = json.loads(metadata["spec"])
    model: ModelSpec = TypeAdapter(ModelSpec).validate_python(spec["model"])
    network = load_model(model, find_facts(spec["dataset"]), load(data))
    if metadata["backdoored"] == "true":
        warnings.warn(
            f"{name} was trained on poisoned data and may carry its backdoor: for research only",
            BackdooredModelWarning,
            stacklevel=3,  # the caller of `Client.model`
        )
    return network.to(device)


def _unsuitable(artifact: Artifact, allowed: str) -> UnsuitableFileError:
    return UnsuitableFileError(
        f"{artifact['name']} ({artifact['media_type']}) is not allowed here; {allowed}"
    )
