"""Datasets on this host, described by the headers of their files."""

import json
from pathlib import Path
from typing import NamedTuple

from app.specs.dataset import DatasetSpec, Imported, Uploaded
from app.specs.facts import BUILT_IN, DatasetFacts

NO_FILE_NEEDED = "digits"
LONGEST_HEADER = 10_000_000


class Dataset(NamedTuple):
    """Facts of a whole dataset. ``version`` is the digest of an imported or uploaded dataset's content, else empty."""

    facts: DatasetFacts
    version: str = ""


class MissingDatasetError(Exception):
    """The dataset is not on this host; the message names the command that gets it."""


def find_local(spec: DatasetSpec, folder: Path) -> Dataset:
    """The dataset that ``spec`` names. Raises MissingDatasetError.

    Where ``folder`` does not exist, the workers keep the data elsewhere, and the built-in facts are used.
    """
    if isinstance(spec, Uploaded):
        raise MissingDatasetError("an uploaded dataset is known to the service only")
    if isinstance(spec, Imported):
        return _read(folder / "imported" / f"{spec.key}.safetensors", spec.key)
    if folder.is_dir() and not present(spec.name, folder):
        raise MissingDatasetError(f"{spec.name} is not in the data folder; run `{command(spec.name)}`")
    return Dataset(BUILT_IN[spec.name])


def present(name: str, folder: Path) -> bool:
    """Whether the built-in dataset ``name`` can be used on this host."""
    return name == NO_FILE_NEEDED or (folder / f"{name}.safetensors").is_file()


def command(name: str) -> str | None:
    """The command that downloads a built-in dataset; None if none is needed."""
    return None if name == NO_FILE_NEEDED else f"bdlab data fetch {name}"


def imported(folder: Path) -> dict[str, Dataset]:
    """Every readable imported dataset by its key."""
    datasets: dict[str, Dataset] = {}
    for path in sorted((folder / "imported").glob("*.safetensors")):
        try:
            datasets[path.stem] = _read(path, path.stem)
        except MissingDatasetError:
            continue
    return datasets


def _read(path: Path, key: str) -> Dataset:
    command = f"bdlab data import FILE --name {key}"
    try:
        metadata = _read_metadata(path)
        return Dataset(DatasetFacts.model_validate_json(metadata["facts"]), metadata["sha256"])
    except FileNotFoundError:
        raise MissingDatasetError(f"there is no imported dataset {key!r}; run `{command}`") from None
    except (OSError, ValueError, KeyError):
        raise MissingDatasetError(
            f"the file of the imported dataset {key!r} is damaged; run `{command}` again"
        ) from None


def _read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file: eight bytes of length, little-endian, then JSON."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= LONGEST_HEADER:
            raise ValueError(f"{path} is not a safetensors file")
        metadata: dict[str, str] = json.loads(file.read(length))["__metadata__"]
    return metadata
