"""An experiment's files as arrays, pictures, frames, and trained models."""

import hashlib
import io
import json
import warnings
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

import bdlab.base_client
from app.specs.facts import BUILT_IN, DatasetFacts
from app.specs.model import ModelSpec
from bdlab.errors import DamagedDownloadError, MissingPackageError, NotFoundError, UnsuitableFileError
from bdlab.frames import Library, installed, read_parquet
from bdlab.types import Artifact

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

    from worker.lab.networks import Network

Arrays = dict[str, NDArray[Any]]
LENGTH_BYTES = 8
"""A safetensors file begins with the length of its header, little-endian."""


class BackdooredModelWarning(UserWarning):
    """A model was loaded that was trained on poisoned data."""


class Files(bdlab.base_client.Client):
    """Part of `bdlab.Client`. An artifact is one of those that `artifacts` lists, or found by `artifact`."""

    def artifact(self, id: str, name: str) -> Artifact:
        """The file of an experiment that is called ``name``. Raises NotFoundError."""
        found = self.artifacts(id)
        for one in found:
            if one["name"] == name:
                return one
        names = ", ".join(one["name"] for one in found) or "none"
        raise NotFoundError(404, "Not Found", f"experiment {id} has no file {name!r}; its files: {names}", [])

    def content(self, artifact: Artifact) -> bytes:
        """The bytes of a file. Raises DamagedDownloadError if their digest is wrong."""
        data = b"".join(self._pieces(f"/v1/artifacts/{artifact['id']}/content"))
        if hashlib.sha256(data).hexdigest() != artifact["sha256"]:
            raise DamagedDownloadError(f"{artifact['name']}: the download's digest is wrong; try again")
        return data

    def arrays(self, artifact: Artifact) -> Arrays:
        """Arrays of an .npz, tensors of a .safetensors, columns of a .csv or .parquet, by name.

        Raises UnsuitableFileError for anything else.
        """
        match _suffix(artifact):
            case "npz":
                with np.load(io.BytesIO(self.content(artifact)), allow_pickle=False) as file:
                    return dict(file)
            case "safetensors":
                from safetensors.numpy import load  # noqa: PLC0415  # only who asks needs it

                return dict(load(self.content(artifact)))
            case "csv" | "parquet":
                table = self._table(artifact)
                return {name: table[name].to_numpy() for name in table.column_names}
        raise _unsuitable(artifact, ".npz, .safetensors, .csv and .parquet are")

    def image(self, artifact: Artifact) -> NDArray[np.uint8]:
        """A picture, uint8 ``[H, W, C]`` (``[H, W]`` if it is gray). Raises UnsuitableFileError if it is none."""
        if not artifact["media_type"].startswith("image/"):
            raise _unsuitable(artifact, "pictures are")
        from PIL import Image  # noqa: PLC0415  # only who asks needs it

        with Image.open(io.BytesIO(self.content(artifact))) as picture:
            return np.asarray(picture, dtype=np.uint8)

    @overload
    def artifact_frame(self, artifact: Artifact, library: Literal["pandas"] = ...) -> "pd.DataFrame": ...
    @overload
    def artifact_frame(self, artifact: Artifact, library: Literal["polars"]) -> "pl.DataFrame": ...
    def artifact_frame(self, artifact: Artifact, library: Library = "pandas") -> Any:
        """A .csv or .parquet, such as a ranking of suspicion. Raises UnsuitableFileError, MissingPackageError."""
        match _suffix(artifact):
            case "csv":
                return installed(library).read_csv(io.BytesIO(self.content(artifact)))
            case "parquet":
                return read_parquet(self.content(artifact), library)
        raise _unsuitable(artifact, ".csv and .parquet are")

    def model(
        self, id: str, arm: str = "undefended", *, seed: int | None = None, device: str = "cpu"
    ) -> "Network":
        """The trained network of an arm, in eval mode on ``device``; ``seed``: by default the experiment's first.

        It takes images in [0, 1], float ``[N, C, H, W]``, normalizes them itself, and gives logits ``[N, classes]``.
        Weights come from a safetensors file: loading runs no code of it. Torch and this repository's worker are
        needed, else MissingPackageError. A model of poisoned data says so by a BackdooredModelWarning.
        """
        try:
            from safetensors.torch import load  # noqa: PLC0415  # torch is not everywhere

            from worker.lab.experiment import load_model  # noqa: PLC0415
        except ImportError as error:
            raise MissingPackageError(
                f"{error.name} is not installed; models need the worker: run `pip install 'backdoor-lab[worker]'`"
            ) from error
        if seed is None:
            seed = int(self.experiment(id)["spec"]["seeds"][0])
        artifact = self.artifact(id, f"seed-{seed}/{arm}/model.safetensors")
        data = self.content(artifact)
        labels = _labels(data)
        spec = json.loads(labels["spec"])
        model: ModelSpec = TypeAdapter(ModelSpec).validate_python(spec["model"])
        network = load_model(model, self._facts(spec["dataset"]), load(data))
        if labels["backdoored"] == "true":
            warnings.warn(
                f"arm {arm!r} of experiment {id} was trained on poisoned data and may carry its backdoor: "
                "for research only",
                BackdooredModelWarning,
                stacklevel=2,
            )
        return network.to(device)

    def _facts(self, dataset: dict[str, Any]) -> DatasetFacts:
        if dataset["name"] == "uploaded":
            return DatasetFacts.model_validate(self.datasets.get(dataset["dataset_id"])["facts"])
        if dataset["name"] == "imported":
            known = {entry["key"]: entry["facts"] for entry in self.catalog()["datasets"]}
            if dataset["key"] not in known:
                raise NotFoundError(404, "Not Found", f"there is no imported data set {dataset['key']!r}", [])
            return DatasetFacts.model_validate(known[dataset["key"]])
        return BUILT_IN[dataset["name"]]

    def _table(self, artifact: Artifact) -> Any:
        file = io.BytesIO(self.content(artifact))
        if _suffix(artifact) == "parquet":
            import pyarrow.parquet as pq  # noqa: PLC0415  # slow to import

            return pq.read_table(file)
        from pyarrow import csv  # noqa: PLC0415

        return csv.read_csv(file)


def _suffix(artifact: Artifact) -> str:
    return artifact["name"].rpartition(".")[2]


def _labels(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    labels: dict[str, str] = json.loads(data[LENGTH_BYTES : LENGTH_BYTES + length])["__metadata__"]
    return labels


def _unsuitable(artifact: Artifact, allowed: str) -> UnsuitableFileError:
    return UnsuitableFileError(
        f"{artifact['name']} ({artifact['media_type']}) is not allowed here; {allowed}"
    )
