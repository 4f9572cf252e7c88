"""Datasets on this host, described by the headers of their files."""

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from app.specs.dataset import FETCHED, DatasetSpec, Imported, Uploaded
from app.specs.facts import BUILT_IN, GIVEN_TENSORS, STANDARD_SHA256, TENSORS, DatasetFacts

NO_FILE_NEEDED = "digits"
UPLOADED = "uploaded"
"""The folder of uploaded datasets that workers have downloaded."""
LONGEST_HEADER = 10_000_000
CHUNK = 2**20


class Dataset(NamedTuple):
    """Facts of a whole dataset. ``version`` is the digest of its content, which whoever reads the images compares."""

    facts: DatasetFacts
    version: str


class MissingDatasetError(Exception):
    """The dataset is not on this host; the message names the command that gets it."""


def find_local(spec: DatasetSpec, folder: Path) -> Dataset:
    """The dataset that ``spec`` names. Raises MissingDatasetError.

    Where ``folder`` does not exist, the workers keep the data elsewhere: a dataset of `BUILT_IN` is then taken to have
    its standard content, and a worker that has another one corrects the keys (`worker.attempt`).
    """
    if isinstance(spec, Uploaded):
        raise MissingDatasetError("an uploaded dataset is known to the service only")
    if isinstance(spec, Imported):
        return _read_imported(folder / "imported" / f"{spec.key}.safetensors")
    if spec.name == NO_FILE_NEEDED or (spec.name in BUILT_IN and not folder.is_dir()):
        return Dataset(BUILT_IN[spec.name], STANDARD_SHA256[spec.name])
    dataset = _read_fetched(spec.name, folder)
    return Dataset(BUILT_IN.get(spec.name, dataset.facts), dataset.version)


def facts(name: str, folder: Path) -> DatasetFacts | None:
    """Facts of the dataset with this name; None if only its file has them, and it is not on this host."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    try:
        return _read_fetched(name, folder).facts
    except MissingDatasetError:
        return None


def present(name: str, folder: Path) -> bool:
    """Whether the dataset with this name can be used on this host."""
    return name == NO_FILE_NEEDED or (folder / f"{name}.safetensors").is_file()


def command(name: str) -> str | None:
    """The command that downloads the dataset with this name; None if none is needed."""
    return None if name == NO_FILE_NEEDED else f"bdlab data fetch {name}"


def imported(folder: Path) -> dict[str, Dataset]:
    """Every readable imported dataset by its key."""
    datasets: dict[str, Dataset] = {}
    for path in sorted((folder / "imported").glob("*.safetensors")):
        try:
            datasets[path.stem] = _read_imported(path)
        except MissingDatasetError:
            continue
    return datasets


def files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every dataset's file in the data folder, and what replaces it."""
    for name in FETCHED:
        if present(name, folder):
            yield folder / f"{name}.safetensors", f"run bdlab data fetch {name}"
    for path in sorted((folder / "imported").glob("*.safetensors")):
        yield path, f"run {_import_command(path)}"
    for path in sorted((folder / UPLOADED).glob("*.safetensors")):
        yield path, "nothing has to be done: a worker downloads it again when it is needed"


def is_intact(path: Path, version: str | None = None) -> bool:
    """Whether a dataset's file has the content whose digest its header holds, which must be ``version`` if given.

    Reads the whole file, as `worker.lab.data.files` does, which needs numpy.
    """
    digest = sha256()
    try:
        with path.open("rb") as file:
            header = _read_header(file)
            start = file.tell()
            for name in (*TENSORS, *(name for name in GIVEN_TENSORS if name in header)):
                if name in GIVEN_TENSORS:
                    digest.update(name.encode())
                first, last = header[name]["data_offsets"]
                file.seek(start + first)
                for offset in range(first, last, CHUNK):
                    if not (chunk := file.read(min(CHUNK, last - offset))):
                        return False
                    digest.update(chunk)
        recorded = header["__metadata__"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return digest.hexdigest() == recorded and version in (None, recorded)


def _read_fetched(name: str, folder: Path) -> Dataset:
    path, missing = folder / f"{name}.safetensors", f"{name} is not in the data folder"
    return _read(path, missing, f"bdlab data fetch {name}")


def _read_imported(path: Path) -> Dataset:
    return _read(path, f"there is no imported dataset {path.stem!r}", _import_command(path))


def _import_command(path: Path) -> str:
    return f"bdlab data import FILE --name {path.stem}"


def _read(path: Path, missing: str, command: str) -> Dataset:
    try:
        with path.open("rb") as file:
            metadata = _read_header(file)["__metadata__"]
        return Dataset(DatasetFacts.model_validate_json(metadata["facts"]), metadata["sha256"])
    except FileNotFoundError:
        raise MissingDatasetError(f"{missing}; run `{command}`") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise MissingDatasetError(
            f"the file of the dataset {path.stem!r} is damaged; run `{command}` again"
        ) from None


def _read_header(file: BinaryIO) -> dict[str, Any]:
    """The header of a safetensors file: eight bytes of length, little-endian, then JSON; the tensors follow."""
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= LONGEST_HEADER:
        raise ValueError("not a safetensors file")
    header: dict[str, Any] = json.loads(file.read(length))
    return header
