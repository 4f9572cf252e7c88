"""Parquet as Hugging Face writes it: ``image`` (bytes, or a struct with ``bytes``) and ``label`` (integers)."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from worker.lab.data.checking import Array, BadSourceError, Source
from worker.lab.data.readers.decoding import ImageStack

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels")
BATCH_ROWS = 64  # encoded images in memory at once


def read(train: Path, test: Path | None, size: int | None, most_bytes: int) -> Source:
    """One file, a pair, or a folder with ``train*.parquet`` and ``test*.parquet``. Raises BadSourceError."""
    if train.is_dir():
        parts = {part: sorted(train.rglob(f"{part}*.parquet")) for part in ("train", "test")}
        if not parts["train"]:
            raise BadSourceError(f"{train} has no train*.parquet")
    else:
        parts = {"train": [train], "test": [test] if test else []}
    x, y, names = _read_files(parts["train"], size, most_bytes)
    if not parts["test"]:
        return Source(x, y, class_names=names)
    x_test, y_test, _ = _read_files(parts["test"], size, most_bytes)
    return Source(x, y, x_test, y_test, names)


def _read_files(
    paths: list[Path], size: int | None, most_bytes: int
) -> tuple[Array, Array, tuple[str, ...] | None]:
    try:
        import pyarrow as pa  # noqa: PLC0415  # slow to import, and used only here
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError as error:
        raise BadSourceError("reading parquet needs the package pyarrow, which is not installed") from error
    try:
        files = [pq.ParquetFile(path, read_dictionary=_shared(pq.read_metadata(path))) for path in paths]
        stack = ImageStack(sum(file.metadata.num_rows for file in files), size, most_bytes)
        labels: list[Array] = []
        for path, file in zip(paths, files, strict=True):
            image, label = _columns(path, file.schema_arrow)
            row = 0
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=[image, label]):
                for cell in batch.column(image):
                    stack.add(f"{path.name} row {row}", _bytes(cell.as_py(), f"{path.name} row {row}"))
                    row += 1
                labels.append(_labels(batch.column(label), path))
            if row != file.metadata.num_rows:
                raise BadSourceError(f"{path} declares {file.metadata.num_rows} rows and has {row}")
        return stack.array(), np.concatenate(labels), _class_names(files[0].schema_arrow)
    except (pa.ArrowException, OSError) as error:
        raise BadSourceError(f"{paths[0]} is not readable parquet: {error}") from error


def _shared(metadata: Any) -> list[str]:
    """The columns of image bytes, to be read as dictionaries: an image that many rows share is then in memory once."""
    paths = {metadata.schema.column(i).path for i in range(metadata.num_columns)}
    return sorted(paths & {leaf for name in IMAGE_COLUMNS for leaf in (name, f"{name}.bytes")})


def _columns(path: Path, schema: Any) -> tuple[str, str]:
    """Names of the image and the label column of an Arrow schema."""
    columns = []
    for candidates in (IMAGE_COLUMNS, LABEL_COLUMNS):
        name = next((name for name in candidates if name in schema.names), None)
        if name is None:
            raise BadSourceError(
                f"{path} has no column {' or '.join(candidates)}; its columns are {', '.join(schema.names)}"
            )
        columns.append(name)
    return columns[0], columns[1]


def _bytes(cell: Any, where: str) -> bytes:
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        raise BadSourceError(f"{where} has no image bytes (a path is not sufficient)")
    return data


def _labels(column: Any, path: Path) -> Array:
    if column.null_count:
        raise BadSourceError(f"{path} has rows without a label")
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _class_names(schema: Any) -> tuple[str, ...] | None:
    """The names that Hugging Face stores in the schema's metadata, if any."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return next(tuple(map(str, features[name]["names"])) for name in LABEL_COLUMNS if name in features)
    except (KeyError, TypeError, ValueError, StopIteration):
        return None
