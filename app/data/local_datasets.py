"""Which data sets are there, and what is known of them, read from the headers of their files."""

import json
from pathlib import Path
from typing import NamedTuple

from app.specs.dataset import DatasetSpec, Imported, Uploaded
from app.specs.facts import BUILT_IN, DatasetFacts

NO_FILE_NEEDED = "digits"
LONGEST_HEADER = 10_000_000


class Known(NamedTuple):
    """What this host knows of a data set. ``version`` is the digest of an imported or uploaded set's content;
    ``victim`` the SHA-256 of the model that a spec on it starts from."""

    facts: DatasetFacts
    version: str = ""
    victim: str = ""


class MissingDatasetError(Exception):
    """The data set is not on this host; the message names the command that gets it."""


def known(spec: DatasetSpec, folder: Path) -> Known:
    """Facts of the data set that ``spec`` names. Raises MissingDatasetError.

    Where ``folder`` does not exist at all, the workers keep the data elsewhere and the built-in facts do.
    """
    if isinstance(spec, Uploaded):
        raise MissingDatasetError("an uploaded data set is known to the service alone")
    if isinstance(spec, Imported):
        return _imported(folder / "imported" / f"{spec.key}.safetensors", spec.key)
    if folder.is_dir() and not present(spec.name, folder):
        raise MissingDatasetError(f"{spec.name} is not in the data folder; run `{command(spec.name)}`")
    return Known(BUILT_IN[spec.name])


def present(name: str, folder: Path) -> bool:
    """True if a data set with a name of its own can be used on this host."""
    return name == NO_FILE_NEEDED or (folder / f"{name}.safetensors").is_file()


def command(name: str) -> str | None:
    """The command that gets a data set; None if none is needed."""
    return None if name == NO_FILE_NEEDED else f"bdlab data fetch {name}"


def imported(folder: Path) -> dict[str, Known]:
    """Every readable imported set by its key."""
    found: dict[str, Known] = {}
    for path in sorted((folder / "imported").glob("*.safetensors")):
        try:
            found[path.stem] = _imported(path, path.stem)
        except MissingDatasetError:
            continue
    return found


def _imported(path: Path, key: str) -> Known:
    try:
        metadata = _header(path)
        return Known(DatasetFacts.model_validate_json(metadata["facts"]), metadata["sha256"])
    except FileNotFoundError:
        hint = f"run `bdlab data import FILE --name {key}`"
        raise MissingDatasetError(f"there is no imported data set {key!r}; {hint}") from None
    except (OSError, ValueError, KeyError):
        hint = f"run `bdlab data import FILE --name {key}` again"
        raise MissingDatasetError(f"the file of the imported data set {key!r} is damaged; {hint}") from None


def _header(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file: eight bytes of length, little-endian, then JSON."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= LONGEST_HEADER:
            raise ValueError(f"{path} is no safetensors file")
        metadata: dict[str, str] = json.loads(file.read(length))["__metadata__"]
    return metadata
