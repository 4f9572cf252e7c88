"""The client: the service's routes, and their responses as data frames, arrays and trained models."""

import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from app.specs.status import TERMINAL
from bdlab import files, frames, mlflow_export
from bdlab.batches import Studies, Sweeps
from bdlab.errors import NotFoundError
from bdlab.experiments import ExperimentRoutes
from bdlab.frames import Library
from bdlab.results import ResultRoutes
from bdlab.transport import Transport, poll, without_none
from bdlab.types import Artifact, Experiment, Json
from bdlab.uploads import Uploads
from bdlab.webhooks import Webhooks

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import polars as pl
    from numpy.typing import NDArray

    from app.specs.facts import DatasetFacts
    from worker.lab.networks import Network


class Client(ExperimentRoutes, ResultRoutes):
    """A client for one service.

    ```python
    with Client("http://127.0.0.1:8000") as client:
        experiment = client.submit({"attack": {"name": "sig"}, "defenses": [{"name": "abl"}]})
        client.wait(experiment["id"])
        print(client.results_frame(experiment["id"]))
    ```

    **Parameters:**

    * **url** - Address of the service.
    * **api_key** - *(optional)* By default the environment's ``BDLAB_API_KEY``, if it is set.
    * **patience** - *(optional)* For how many seconds to retry while the connection fails or the service answers 429
      or 503. Only reads, and requests that are safe to repeat, are retried.
    * **timeout** - *(optional)* Seconds without any data after which a request fails.

    Every method raises `UnreachableError` if the service does not answer, and `ApiError` if it refuses the request.
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, patience: float = 10.0, timeout: float = 30.0
    ) -> None:
        key = api_key if api_key is not None else os.environ.get("BDLAB_API_KEY")
        transport = Transport(url, api_key=key, patience=patience, timeout=timeout)
        super().__init__(transport)
        self.sweeps, self.studies = Sweeps(transport, "sweeps"), Studies(transport, "studies")
        self.models, self.datasets = Uploads(transport, "models"), Uploads(transport, "datasets")
        self.webhooks = Webhooks(transport, "webhooks")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def catalog(self) -> Json:
        """Attacks, defenses, datasets and models, with JSON schema, defaults and sources."""
        return self._transport.get("/v1/catalog")

    def me(self) -> Json:
        """Owner and scopes of the API key, and the use of the owner's quotas."""
        return self._transport.get("/v1/me")

    def workers(self) -> Json:
        """Workers with device, memory, state and version, and the length of every queue."""
        return self._transport.get("/v1/workers")

    def ready(self) -> bool:
        """Whether database, broker, object store and workers are available."""
        return self._transport.is_ready()

    def wait(
        self,
        id: str,
        *,
        timeout: float | None = None,
        on_progress: Callable[[Experiment], None] | None = None,
        progress: bool | None = None,
    ) -> Experiment:
        """Poll until the experiment has ended; raises `WaitTimeoutError` after ``timeout`` seconds.

        ``progress`` shows bars, or lines where bars cannot be updated. By default only in a terminal or notebook.
        """
        from bdlab.progress import progress_display  # noqa: PLC0415  # rich is slow to import

        with progress_display(progress) as show:

            def report(experiment: Experiment) -> None:
                show(experiment)
                if on_progress:
                    on_progress(experiment)

            name = f"experiment {id}"
            return poll(lambda: self.experiment(id), name, TERMINAL, timeout=timeout, on_progress=report)

    # Data frames; ``library`` must be installed, else `MissingPackageError` is raised

    @overload
    def results_frame(self, id: str, library: Literal["pandas"] = ...) -> "pd.DataFrame": ...
    @overload
    def results_frame(self, id: str, library: Literal["polars"]) -> "pl.DataFrame": ...
    def results_frame(self, id: str, library: Library = "pandas") -> Any:
        """One row for each arm and seed: experiment_id, arm, seed, a column per metric, warnings and error as text."""
        return frames.results_frame(id, self.results(id), library)

    @overload
    def metrics_frame(self, id: str, library: Literal["pandas"] = ..., **query: Any) -> "pd.DataFrame": ...
    @overload
    def metrics_frame(self, id: str, library: Literal["polars"], **query: Any) -> "pl.DataFrame": ...
    def metrics_frame(self, id: str, library: Library = "pandas", **query: Any) -> Any:
        """One row for each point of a curve: arm, seed, name, step, value; ``query`` as in `metrics`."""
        return frames.metrics_frame(self.metrics(id, **query), library)

    @overload
    def search_frame(
        self, *where: str, sort: str | None = ..., fields: str | None = ..., library: Literal["pandas"] = ...
    ) -> "pd.DataFrame": ...
    @overload
    def search_frame(
        self, *where: str, sort: str | None = ..., fields: str | None = ..., library: Literal["polars"]
    ) -> "pl.DataFrame": ...
    def search_frame(
        self, *where: str, sort: str | None = None, fields: str | None = None, library: Library = "pandas"
    ) -> Any:
        """All rows that `search` finds, one for each experiment and arm."""
        return frames.rows_frame([*self.search(*where, sort=sort, fields=fields, limit=1000)], library)

    @overload
    def leaderboard_frame(
        self,
        dataset: str,
        model: str,
        *,
        poisoning_rate: float | None = ...,
        library: Literal["pandas"] = ...,
    ) -> "pd.DataFrame": ...
    @overload
    def leaderboard_frame(
        self, dataset: str, model: str, *, poisoning_rate: float | None = ..., library: Literal["polars"]
    ) -> "pl.DataFrame": ...
    def leaderboard_frame(
        self, dataset: str, model: str, *, poisoning_rate: float | None = None, library: Library = "pandas"
    ) -> Any:
        """One row per cell; published numbers, which were not measured here, name their source in ``published_by``."""
        query = without_none(dataset=dataset, model=model, poisoning_rate=poisoning_rate)
        return frames.file_frame(self.table("/v1/leaderboard", "parquet", **query), "parquet", library)

    @overload
    def compare_frame(self, ids: Sequence[str], library: Literal["pandas"] = ...) -> "pd.DataFrame": ...
    @overload
    def compare_frame(self, ids: Sequence[str], library: Literal["polars"]) -> "pl.DataFrame": ...
    def compare_frame(self, ids: Sequence[str], library: Library = "pandas") -> Any:
        """One row for each arm, metric and experiment: mean, low, high, n, and the same of the paired ``difference``
        to the first experiment, over the seeds that both have."""
        return frames.compare_frame(ids, self.compare(ids), library)

    # Files; an artifact is an entry of `artifacts`, or the result of `artifact`

    @overload
    def artifact_frame(self, artifact: Artifact, library: Literal["pandas"] = ...) -> "pd.DataFrame": ...
    @overload
    def artifact_frame(self, artifact: Artifact, library: Literal["polars"]) -> "pl.DataFrame": ...
    def artifact_frame(self, artifact: Artifact, library: Library = "pandas") -> Any:
        """A .csv or .parquet, such as a ranking of suspicion. Raises `UnsuitableFileError` for other files."""
        suffix = files.require_suffix(artifact, "csv", "parquet")
        return frames.file_frame(self.content(artifact), suffix, library)

    def arrays(self, artifact: Artifact) -> "dict[str, NDArray[Any]]":
        """Arrays of an .npz, tensors of a .safetensors, columns of a .csv or .parquet, by name.

        Raises `UnsuitableFileError` for other files.
        """
        suffix = files.require_suffix(artifact, "npz", "safetensors", "csv", "parquet")
        return files.read_arrays(self.content(artifact), suffix)

    def image(self, artifact: Artifact) -> "NDArray[np.uint8]":
        """A picture, uint8 ``[H, W, C]``, or ``[H, W]`` in grayscale. Raises `UnsuitableFileError` for other files."""
        files.require_image(artifact)
        return files.read_image(self.content(artifact))

    def model(
        self, id: str, arm: str = "undefended", *, seed: int | None = None, device: str = "cpu"
    ) -> "Network":
        """The trained network of an arm, in eval mode on ``device``; ``seed``: by default the experiment's first.

        It takes images in [0, 1], float ``[N, C, H, W]``, normalizes them itself, and returns logits ``[N, classes]``.
        Weights come from a safetensors file: loading runs no code from it. Needs the extra ``worker``, else raises
        `MissingPackageError`. Emits a `BackdooredModelWarning` for a model that was trained on poisoned data.
        """
        files.require_worker()
        if seed is None:
            seed = int(self.experiment(id)["spec"]["seeds"][0])
        data = self.content(self.artifact(id, f"seed-{seed}/{arm}/model.safetensors"))
        return files.load_network(data, self._dataset_facts, device, f"arm {arm!r} of experiment {id}")

    def to_mlflow(
        self,
        id: str,
        tracking_uri: str | None = None,
        *,
        name: str = mlflow_export.DEFAULT_NAME,
        files: bool = True,
    ) -> str:
        """Copy an ended experiment to an MLflow server; returns the id of its run. See `bdlab.mlflow_export.export`."""
        return mlflow_export.export(self, id, tracking_uri, name=name, files=files)

    def _dataset_facts(self, dataset: Json) -> "DatasetFacts":
        from app.specs.facts import BUILT_IN, DatasetFacts  # noqa: PLC0415  # slow to import

        if dataset["name"] == "uploaded":
            return DatasetFacts.model_validate(self.datasets.get(dataset["dataset_id"])["facts"])
        if dataset["name"] == "imported":
            imported = {entry["key"]: entry["facts"] for entry in self.catalog()["datasets"]}
            if dataset["key"] not in imported:
                raise NotFoundError(404, "Not Found", f"there is no imported dataset {dataset['key']!r}", [])
            return DatasetFacts.model_validate(imported[dataset["key"]])
        name = dataset["name"]
        if name in BUILT_IN:
            return BUILT_IN[name]
        facts = next((e["facts"] for e in self.catalog()["datasets"] if e["name"] == name), None)
        if facts is None:
            raise NotFoundError(404, "Not Found", f"the dataset {name!r} is not on the service's host", [])
        return DatasetFacts.model_validate(facts)
