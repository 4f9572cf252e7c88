"""Responses as pandas or polars data frames. Every function raises MissingPackageError without the library."""

import io
from collections.abc import Sequence
from typing import Any, Literal

from bdlab.optional import optional_import
from bdlab.types import Json, Results

Library = Literal["pandas", "polars"]
REQUIREMENTS = {"pandas": "backdoor-lab[frames]", "polars": "polars"}
METRIC_COLUMNS = ("arm", "seed", "name", "step", "value")
AGGREGATE_FIELDS = ("mean", "low", "high", "n")


def results_frame(id: str, results: Results, library: Library) -> Any:
    """One row for each arm and seed."""
    rows = []
    for arm in results["arms"]:
        for seed in arm["seeds"]:
            texts = {"warnings": "; ".join(seed.get("warnings") or []), "error": seed.get("error")}
            numbers = {name: value for name, value in seed.items() if name not in texts}
            rows.append({"experiment_id": id, "arm": arm["arm"], **numbers, **texts})
    return rows_frame(rows, library)


def metrics_frame(metrics: Json, library: Library) -> Any:
    """One row for each point of a curve."""
    rows = [
        dict(zip(METRIC_COLUMNS, (series["arm"], series["seed"], series["name"], step, value), strict=True))
        for series in metrics["series"]
        for step, value in zip(series["steps"], series["values"], strict=True)
    ]
    return rows_frame(rows, library, METRIC_COLUMNS)


def compare_frame(ids: Sequence[str], comparison: Json, library: Library) -> Any:
    """One row for each arm, metric and experiment."""
    rows = []
    for arm in comparison["arms"]:
        for metric in arm["metrics"]:
            for id, value, difference in zip(ids, metric["values"], metric["differences"], strict=True):
                row = {"arm": arm["arm"], "metric": metric["metric"], "experiment_id": id}
                row |= {field: (value or {}).get(field) for field in AGGREGATE_FIELDS}
                row |= {f"difference.{field}": (difference or {}).get(field) for field in AGGREGATE_FIELDS}
                rows.append(row)
    return rows_frame(rows, library)


def rows_frame(rows: Sequence[Json], library: Library, columns: Sequence[str] = ()) -> Any:
    """A frame of ``rows``; a key that a row lacks is null there. ``columns``: by default the keys of all rows."""
    module = load_library(library)
    names = list(columns or dict.fromkeys(name for row in rows for name in row))
    data = {name: [row.get(name) for row in rows] for name in names}
    return module.DataFrame(data, strict=False) if library == "polars" else module.DataFrame(data)


def file_frame(data: bytes, suffix: str, library: Library) -> Any:
    """A csv or parquet file as a frame."""
    module = load_library(library)
    read = module.read_csv if suffix == "csv" else module.read_parquet
    return read(io.BytesIO(data))


def load_library(library: Library) -> Any:
    """The module of ``library``."""
    if library not in REQUIREMENTS:
        raise ValueError(f"library: {library!r} is not allowed; 'pandas' and 'polars' are")
    return optional_import(library, REQUIREMENTS[library])
