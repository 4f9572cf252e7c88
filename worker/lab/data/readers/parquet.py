"""Parquet as Hugging Face writes it: ``image`` (bytes, or a struct with ``bytes``) and ``label`` (integers).

A dataset that came poisoned may have the columns `GIVEN_COLUMNS`, and a part ``test_triggered``.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from worker.lab.data.checking import Array, BadSourceError, Source
from worker.lab.data.readers.decoding import ImageStack, stack_parts
from worker.lab.data.readers.splits import SPLITS, TEST, TRAIN, TRIGGERED, choose_splits, describe_skipped
from worker.lab.data.readers.trees import Tree
from worker.lab.data.space import Space

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
BATCH_ROWS = 64  # encoded images in memory at once
SUFFIX = ".parquet"
OTHER_PARTS = "of a part named train, test or validation"
FLAGS = ("is_poisoned", "is_cross")
GIVEN_COLUMNS = {TRAIN: (*FLAGS, "clean_labels"), TRIGGERED: ("y_test_target",)}
"""What is known about the images of a part, under the names of an npz."""
_WORD = re.compile(rf"{TRIGGERED}|[a-z]+")


class _Shard(NamedTuple):
    """An open parquet file, the names of its two columns, and the class names in its schema, if any."""

    name: str
    file: Any
    image: str
    label: str
    class_names: tuple[str, ...] | None


def read_files(train: Path, test: Path | None, size: int | None, space: Space) -> Source:
    """One file, or a pair. Raises BadSourceError."""
    with ExitStack() as stack:
        parts = {
            part: [(path.name, stack.enter_context(path.open("rb")))]
            for part, path in ((TRAIN, train), (TEST, test))
            if path is not None
        }
        return _read(parts, size, space)


def read_tree(tree: Tree, size: int | None, space: Space) -> Source:
    """The Hub's layouts, such as ``data/train-00000-of-00001.parquet`` and ``default/train/0000.parquet``.

    Raises BadSourceError.
    """
    tables = [path for path in tree.files if path.suffix.lower() == SUFFIX]
    others = [path for path in tree.files if path.suffix.lower() != SUFFIX]
    parts: dict[str, list[PurePosixPath]] = {}
    configurations: dict[PurePosixPath, PurePosixPath] = {}
    unknown = []
    for path in tables:
        located = locate(path)
        if located is None:
            unknown.append(path)
            continue
        part, configuration = located
        parts.setdefault(part, []).append(path)
        configurations.setdefault(configuration, path)
    if len(configurations) > 1:
        first, second, *_ = configurations.values()
        raise BadSourceError(
            f"{first} and {second} are of different datasets; import the folder of one of them"
        )
    if not parts:  # nothing says otherwise, as for one file
        parts, unknown = {TRAIN: tables}, []
    train, test, notes = choose_splits(parts, tree.name, "parquet files")
    with ExitStack() as stack:
        chosen = {TRAIN: train, TEST: test, TRIGGERED: parts.get(TRIGGERED)}
        opened = {
            part: [(str(path), stack.enter_context(tree.open(path))) for path in paths]
            for part, paths in chosen.items()
            if paths is not None
        }
        source = _read(opened, size, space)
    source.notes = [
        *notes,
        *describe_skipped(unknown, OTHER_PARTS),
        *describe_skipped(others, "parquet"),
    ]
    return source


def locate(path: PurePosixPath) -> tuple[str, PurePosixPath] | None:
    """The part that a file belongs to, and the folder of its dataset: by the file's name, else by a folder's."""
    word = _WORD.match(path.stem.lower())
    if word is not None and word[0] in SPLITS:
        return SPLITS[word[0]], path.parent
    for folder in path.parents:
        if folder.name.lower() in SPLITS:
            return SPLITS[folder.name.lower()], folder.parent
    return None


def _read(parts: Mapping[str, Sequence[tuple[str, BinaryIO]]], size: int | None, space: Space) -> Source:
    """The training part and the others that there are; each is a list of open files with their names."""
    try:
        import pyarrow as pa  # noqa: PLC0415  # slow to import, and used only here
    except ImportError as error:
        raise BadSourceError("reading parquet needs the package pyarrow, which is not installed") from error
    try:
        shards = {part: [_open_shard(name, file) for name, file in files] for part, files in parts.items()}
        first = shards[TRAIN][0]
        stacks, columns = {}, {}
        for part, files in shards.items():
            stack = ImageStack(sum(shard.file.metadata.num_rows for shard in files), size, space)
            known = _given_columns(part, files)
            collected: dict[str, list[Array]] = {name: [] for name in ("label", *known)}
            for shard in files:
                translation = _translation(shard, first.class_names, first.name)
                stack.extend(_rows(shard, translation, known, collected))
            stacks[part] = stack
            columns[part] = {name: np.concatenate(arrays) for name, arrays in collected.items() if arrays}
        x, x_test = stack_parts(stacks[TRAIN], stacks.get(TEST))
        given = {name: columns[TRAIN][name] for name in GIVEN_COLUMNS[TRAIN] if name in columns[TRAIN]}
        if TRIGGERED in parts:
            _, x_triggered = stack_parts(stacks[TRAIN], stacks[TRIGGERED])
            assert x_triggered is not None
            labels = columns[TRIGGERED].pop("label", np.empty(0, np.int64))
            given |= {"x_test_triggered": x_triggered, "y_test_triggered": labels, **columns[TRIGGERED]}
    except (pa.ArrowException, OSError) as error:
        raise BadSourceError(f"{parts[TRAIN][0][0]} is not readable parquet: {error}") from error
    y, y_test = (
        columns[part].get("label", np.empty(0, np.int64)) if part in columns else None
        for part in (TRAIN, TEST)
    )
    assert y is not None
    return Source(x, y, x_test, y_test, first.class_names, given=given)


def _given_columns(part: str, shards: Sequence[_Shard]) -> list[str]:
    """Those of `GIVEN_COLUMNS` that the part's files have. Raises BadSourceError if only some of the files have one."""
    known = []
    for name in GIVEN_COLUMNS.get(part, ()):
        has = [name in shard.file.schema_arrow.names for shard in shards]
        if any(has) and not all(has):
            with_it, without = shards[has.index(True)].name, shards[has.index(False)].name
            raise BadSourceError(f"{without} has no column {name}, which {with_it} has")
        if any(has):
            known.append(name)
    return known


def _open_shard(name: str, file: BinaryIO) -> _Shard:
    import pyarrow.parquet as pq  # noqa: PLC0415

    shared = _shared(pq.read_metadata(file))
    file.seek(0)
    table = pq.ParquetFile(file, read_dictionary=shared)
    image, label = _columns(name, table.schema_arrow)
    return _Shard(name, table, image, label, _class_names(table.schema_arrow, label))


def _rows(
    shard: _Shard, translation: Array | None, known: Sequence[str], collected: dict[str, list[Array]]
) -> Iterator[tuple[str, bytes]]:
    """The images of a file by name; each batch's labels, and its columns ``known``, are appended to ``collected``.

    Raises BadSourceError.
    """
    row = 0
    columns = [shard.image, shard.label, *known]
    for batch in shard.file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
        collected["label"].append(_labels(batch.column(shard.label), shard.name, row, translation))
        for name in known:
            column = batch.column(name)
            collected[name].append(
                _flags(column, name, shard.name)
                if name in FLAGS
                else _labels(column, f"{shard.name} column {name}", row, translation)
            )
        for cell in batch.column(shard.image):
            where = f"{shard.name} row {row}"
            yield where, _bytes(cell.as_py(), where)
            row += 1
    if row != shard.file.metadata.num_rows:
        raise BadSourceError(f"{shard.name} declares {shard.file.metadata.num_rows} rows and has {row}")


def _translation(shard: _Shard, names: tuple[str, ...] | None, first: str) -> Array | None:
    """For each label of the file the label that has the same name in the ``first`` file; None if nothing changes."""
    if shard.class_names == names or shard.class_names is None:
        return None
    if names is None or sorted(shard.class_names) != sorted(names):
        described = "no class names" if names is None else f"the classes {_shorten(names)}"
        raise BadSourceError(
            f"{shard.name} has the classes {_shorten(shard.class_names)}, but {first} has {described}; "
            "all files must have the same ones"
        )
    return np.array([names.index(name) for name in shard.class_names], np.int64)


def _shorten(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _shared(metadata: Any) -> list[str]:
    """The columns of image bytes, to be read as dictionaries: an image that many rows share is then in memory once."""
    paths = {metadata.schema.column(i).path for i in range(metadata.num_columns)}
    return sorted(paths & {leaf for name in IMAGE_COLUMNS for leaf in (name, f"{name}.bytes")})


def _columns(name: str, schema: Any) -> tuple[str, str]:
    """Names of the image and the label column of an Arrow schema."""
    columns = []
    for candidates in (IMAGE_COLUMNS, LABEL_COLUMNS):
        column = next((column for column in candidates if column in schema.names), None)
        if column is None:
            raise BadSourceError(
                f"{name} has no column {' or '.join(candidates)}; its columns are {', '.join(schema.names)}"
            )
        columns.append(column)
    return columns[0], columns[1]


def _bytes(cell: Any, where: str) -> bytes:
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        raise BadSourceError(f"{where} has no image bytes (a path is not sufficient)")
    return data


def _flags(column: Any, name: str, file: str) -> Array:
    """A batch's column of flags, still to be checked."""
    if column.null_count:
        raise BadSourceError(f"{file} has rows without {name}")
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _labels(column: Any, name: str, first_row: int, translation: Array | None) -> Array:
    """A batch's labels, which begins with ``first_row`` of the file ``name``."""
    if column.null_count:
        raise BadSourceError(f"{name} has rows without a label")
    labels = np.asarray(column.to_numpy(zero_copy_only=False))
    if not np.issubdtype(labels.dtype, np.integer):
        raise BadSourceError(
            f"{name}: labels of type {labels.dtype}; they must be integers, 0 to classes - 1"
        )
    most = None if translation is None else len(translation) - 1
    bad = (labels < 0) | (labels > (np.iinfo(np.int64).max if most is None else most))
    if bad.any():
        row = int(np.argmax(bad))
        hint = "; the Hub marks images without a label so" if labels[row] == -1 else ""
        allowed = "classes - 1" if most is None else most
        raise BadSourceError(
            f"{name} row {first_row + row}: label {labels[row]}; labels must be 0 to {allowed}{hint}"
        )
    return labels if translation is None else translation[labels]


def _class_names(schema: Any, label: str) -> tuple[str, ...] | None:
    """The names that Hugging Face stores in the schema's metadata, if any."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[label]["names"]))
    except (KeyError, TypeError, ValueError):
        return None
