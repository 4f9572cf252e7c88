"""Answers as pandas or polars frames."""

import io
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, overload

import bdlab.base_client
from bdlab.errors import MissingPackageError

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

Json = dict[str, Any]
Library = Literal["pandas", "polars"]


class Frames(bdlab.base_client.Client):
    """Part of `bdlab.Client`. ``library`` says which kind of frame; that package must be installed."""

    @overload
    def results_frame(self, id: str, library: Literal["pandas"] = ...) -> "pd.DataFrame": ...
    @overload
    def results_frame(self, id: str, library: Literal["polars"]) -> "pl.DataFrame": ...
    def results_frame(self, id: str, library: Library = "pandas") -> Any:
        """One row for each arm and seed: experiment_id, arm, seed, a column a metric, warnings and error as text."""
        rows = []
        for arm in self.results(id)["arms"]:
            for seed in arm["seeds"]:
                texts = {"warnings": "; ".join(seed.get("warnings") or []), "error": seed.get("error")}
                numbers = {name: value for name, value in seed.items() if name not in texts}
                rows.append({"experiment_id": id, "arm": arm["arm"], **numbers, **texts})
        return frame(rows, library)

    @overload
    def metrics_frame(self, id: str, library: Literal["pandas"] = ..., **query: Any) -> "pd.DataFrame": ...
    @overload
    def metrics_frame(self, id: str, library: Literal["polars"], **query: Any) -> "pl.DataFrame": ...
    def metrics_frame(self, id: str, library: Library = "pandas", **query: Any) -> Any:
        """One row for each point of a curve: arm, seed, name, step, value; ``query`` as in `metrics`."""
        rows = [
            {
                "arm": series["arm"],
                "seed": series["seed"],
                "name": series["name"],
                "step": step,
                "value": value,
            }
            for series in self.metrics(id, **query)["series"]
            for step, value in zip(series["steps"], series["values"], strict=True)
        ]
        return frame(rows, library, ("arm", "seed", "name", "step", "value"))

    @overload
    def search_frame(
        self, *where: str, sort: str | None = ..., fields: str | None = ..., library: Literal["pandas"] = ...
    ) -> "pd.DataFrame": ...
    @overload
    def search_frame(
        self, *where: str, sort: str | None = ..., fields: str | None = ..., library: Literal["polars"]
    ) -> "pl.DataFrame": ...
    def search_frame(
        self,
        *where: str,
        sort: str | None = None,
        fields: str | None = None,
        library: Library = "pandas",
    ) -> Any:
        """All rows that `search` finds, one for each experiment and arm."""
        return frame(list(self.search(*where, sort=sort, fields=fields, limit=1000)), library)

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
        """One row a cell; published numbers, which were not measured here, name their source in ``published_by``."""
        query = {"dataset": dataset, "model": model, "poisoning_rate": poisoning_rate}
        asked = {name: value for name, value in query.items() if value is not None}
        return read_parquet(self.table("/v1/leaderboard", "parquet", **asked), library)

    @overload
    def compare_frame(self, ids: Sequence[str], library: Literal["pandas"] = ...) -> "pd.DataFrame": ...
    @overload
    def compare_frame(self, ids: Sequence[str], library: Literal["polars"]) -> "pl.DataFrame": ...
    def compare_frame(self, ids: Sequence[str], library: Library = "pandas") -> Any:
        """One row for each arm, metric and experiment: mean, low, high, n, and the same of the paired ``difference``
        to the first experiment, over the seeds that both have."""
        ends = ("mean", "low", "high", "n")
        rows = []
        compared = self.compare(ids)
        for arm in compared["arms"]:
            for metric in arm["metrics"]:
                of_each = zip(ids, metric["values"], metric["differences"], strict=True)
                for id, value, difference in of_each:
                    row = {"arm": arm["arm"], "metric": metric["metric"], "experiment_id": id}
                    row |= {end: (value or {}).get(end) for end in ends}
                    row |= {f"difference.{end}": (difference or {}).get(end) for end in ends}
                    rows.append(row)
        return frame(rows, library)


def frame(rows: Sequence[Json], library: Library, columns: Sequence[str] = ()) -> Any:
    """A frame of ``rows``; a key that a row lacks is empty there. Raises MissingPackageError."""
    module = installed(library)
    names = list(columns or dict.fromkeys(name for row in rows for name in row))
    data = {name: [row.get(name) for row in rows] for name in names}
    return module.DataFrame(data, strict=False) if library == "polars" else module.DataFrame(data)


def read_parquet(data: bytes, library: Library) -> Any:
    """A parquet file as a frame. Raises MissingPackageError."""
    return installed(library).read_parquet(io.BytesIO(data))


def installed(name: Library) -> Any:
    """The package ``name``. Raises MissingPackageError."""
    if name not in ("pandas", "polars"):
        raise ValueError(f"library: {name!r} is not allowed; 'pandas' and 'polars' are")
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingPackageError(f"{name} is not installed; run `pip install {name}`") from error
