"""`bdlab data import`: converts any supported source to one file in the data folder."""

import re
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from pathlib import Path

from app.specs.dataset import ENCODINGS, FETCHED, is_text_encoding
from app.specs.facts import BUILT_IN, DatasetFacts
from worker.lab.contracts import LabError
from worker.lab.data import files
from worker.lab.data.checking import BadSourceError, CheckedDataset, Source, check_source
from worker.lab.data.readers import images, npz, parquet, tiny_imagenet
from worker.lab.data.readers.trees import open_tree
from worker.lab.data.space import MOST_BYTES, Space

KEY = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
"""Same as `app.specs.dataset.Imported.key`."""
EXPECTED = {
    "cifar100": ("3x32x32", 100, 50_000, 10_000),
    "svhn": ("3x32x32", 10, 73_257, 26_032),
    "mnist": ("1x28x28", 10, 60_000, 10_000),
    "fashion_mnist": ("1x28x28", 10, 60_000, 10_000),
    "stl10": ("3x96x96", 10, 5_000, 8_000),
    "imagenette": ("3x64x64", 10, 9_469, 3_925),
    "tiny_imagenet": ("3x64x64", 200, 100_000, 10_000),
}
"""Shape, classes, training and test images of the datasets of `FETCHED` whose facts are in their files only."""


@dataclass(frozen=True)
class StoredDataset:
    """A dataset in the data folder. ``notes`` say what of its source is not used."""

    dataset: dict[str, str]  # as a spec names it
    path: Path
    facts: DatasetFacts
    sha256: str
    notes: tuple[str, ...] = ()


def import_dataset(
    source: Path,
    data_dir: Path,
    *,
    key: str | None,
    built_in: str | None,
    test: Path | None,
    test_fraction: float | None,
    split_seed: int,
    size: int | None,
    replace: bool,
    zip_encoding: str | None = None,
) -> StoredDataset:
    """Import ``source``; nothing is written unless all of it is valid.

    The dataset is named by ``built_in``, else by ``key``, else by the source's file name. The name of a built-in
    dataset requires its shape and class counts. An existing equal dataset is kept unless its file is damaged; a
    different one is replaced only with ``replace``. Raises LabError.
    """
    name = built_in or key or key_of(source)
    _check_name(name)
    path = dataset_path(name, data_dir)
    checked = read_source(
        source,
        test=test,
        test_fraction=test_fraction,
        split_seed=split_seed,
        size=size,
        zip_encoding=zip_encoding,
        scratch=path.parent,
    )
    if name in FETCHED:
        checked = check_built_in(name, checked)
    if not replace and path.exists():
        unchanged = _unchanged(path, name, checked)
        if files.is_intact(path):
            return unchanged
    facts, sha256 = files.write(path, **checked.content)
    return StoredDataset(dataset_spec(name), path, facts, sha256, checked.notes)


def read_source(
    source: Path,
    *,
    test: Path | None = None,
    test_fraction: float | None,
    split_seed: int,
    size: int | None,
    most_bytes: int = MOST_BYTES,
    zip_encoding: str | None = None,
    scratch: Path | None = None,
) -> CheckedDataset:
    """The validated arrays of ``source``, of at most ``most_bytes`` when decoded. Raises LabError.

    Arrays that are too large for memory are kept in files in the folder ``scratch``, which end with them.
    """
    if test_fraction is not None and not 0 < test_fraction < 1:
        raise BadSourceError(f"{test_fraction} is not allowed; above 0 and below 1", "test_fraction")
    if size is not None and not 1 <= size <= 1024:
        raise BadSourceError(f"{size} is not allowed; 1 to 1024 pixels", "size")
    if zip_encoding is not None and not is_text_encoding(zip_encoding):
        raise BadSourceError(f"{zip_encoding!r} is not allowed; {ENCODINGS}", "zip_encoding")
    space = Space(most_bytes, scratch)
    return check_source(
        _read(source, test, size, space, zip_encoding),
        test_fraction=test_fraction,
        split_seed=split_seed,
        space=space,
    )


def dataset_path(name: str, data_dir: Path) -> Path:
    """Path of the dataset of that name or key."""
    return (
        data_dir / f"{name}.safetensors" if name in FETCHED else data_dir / "imported" / f"{name}.safetensors"
    )


def dataset_spec(name: str) -> dict[str, str]:
    """The dataset field of a spec that names it."""
    return {"name": name} if name in FETCHED else {"name": "imported", "key": name}


def _check_name(name: str) -> None:
    if name in BUILT_IN and name not in FETCHED:
        raise BadSourceError(f"{name} is built in and needs no import; choose another name with --name")
    if not KEY.fullmatch(name):
        raise BadSourceError(
            f"name {name!r} is not allowed; up to 63 of a-z, 0-9, - and _, not beginning with - or _"
        )


def key_of(source: Path) -> str:
    """The key of a dataset that is not given one, from the name of its source."""
    stem = source.resolve().name.split(".")[0].lower()
    return re.sub(r"[^a-z0-9_-]+", "-", stem).strip("-_")


def _read(
    source: Path, test: Path | None, size: int | None, space: Space, zip_encoding: str | None
) -> Source:
    for path in (source, test):
        if path is not None and not path.exists():
            raise BadSourceError(f"no such file or folder: {path}")
    if test is not None and (source.is_dir() or source.suffix.lower() != parquet.SUFFIX):
        raise BadSourceError(
            "only for a pair of parquet files; other sources contain their test images", "test"
        )
    kind = "folder" if source.is_dir() else source.suffix.lower()
    if zip_encoding is not None and kind != ".zip":
        raise BadSourceError("only for a zip, whose names it decodes", "zip_encoding")
    if kind == ".npz":
        if size is not None:
            raise BadSourceError("only for encoded images; arrays in an .npz are not resized", "size")
        return npz.read(source, space)
    if kind == parquet.SUFFIX:
        return parquet.read_files(source, test, size, space)
    if kind not in ("folder", ".zip"):
        raise BadSourceError(f"{source}: allowed are .npz, .zip, .parquet, and a folder of images by class")
    with open_tree(source, space.most_bytes, zip_encoding) as tree:
        if (root := tiny_imagenet.find_root(tree)) is not None:
            return tiny_imagenet.read(tree, root, size, space)
        has_tables = any(path.suffix.lower() == parquet.SUFFIX for path in tree.files)
        return (parquet.read_tree if has_tables else images.read)(tree, size, space)


def check_built_in(name: str, checked: CheckedDataset) -> CheckedDataset:
    """``checked`` with the class names of the dataset ``name``. Raises BadSourceError if shape or counts differ."""
    if checked.given:
        raise BadSourceError(
            f"this is not {name}: it came poisoned, as {sorted(checked.given)[0]} says; give another --name KEY"
        )
    if name in EXPECTED:
        actual_shape = "x".join(map(str, checked.x_train.shape[1:]))
        sizes = (actual_shape, len(checked.class_names), len(checked.y_train), len(checked.y_test))
        if sizes != EXPECTED[name]:
            described = [
                "{} images, {} classes, {} training and {} test images".format(*s)
                for s in (sizes, EXPECTED[name])
            ]
            raise BadSourceError(
                f"this is not {name}: {described[0]}, where {name} has {described[1]}; give another --name KEY"
            )
        return checked
    expected = BUILT_IN[name]
    for part, y, counts in (
        ("training", checked.y_train, expected.train_counts),
        ("test", checked.y_test, expected.test_counts),
    ):
        actual = tuple((y == label).sum() for label in range(expected.classes))
        if actual != counts or len(checked.class_names) != expected.classes:
            raise BadSourceError(
                f"this is not {name}: {len(y)} {part} images in {len(checked.class_names)} classes, "
                f"where {name} has {sum(counts)} in {expected.classes}, with fixed counts of each; "
                "give another --name KEY"
            )
    shape, required = checked.x_train.shape[1:], (expected.channels, expected.height, expected.width)
    if shape != required:
        raise BadSourceError(
            f"this is not {name}: images of {'x'.join(map(str, shape))} where {name} has "
            f"{'x'.join(map(str, required))}; give another --name KEY"
        )
    return replace_fields(checked, class_names=expected.class_names)


def _unchanged(path: Path, name: str, checked: CheckedDataset) -> StoredDataset:
    try:
        facts, sha256 = files.read_header(path)
    except LabError as error:
        raise BadSourceError(f"{error}; give --replace to overwrite it") from error
    same = sha256 == files.digest(checked.content) and facts.class_names == checked.class_names
    if not same:
        raise BadSourceError(f"a different dataset named {name} exists; give --replace to overwrite it")
    return StoredDataset(dataset_spec(name), path, facts, sha256, checked.notes)
