"""Datasets on the Hugging Face Hub by their id, as the parquet files that the Hub makes of each.

`HF_ENDPOINT` names a mirror, and `HF_TOKEN` a token for datasets that are not public, as for Hugging Face's own tools.
"""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import httpx2

from worker.lab.contracts import LabError
from worker.lab.data.readers.parquet import OTHER_PARTS, SUFFIX, locate
from worker.lab.data.readers.splits import describe_skipped

PREFIX = "hf:"
ENDPOINT = "https://huggingface.co"
REVISIONS = ("refs/convert/parquet", "main")
"""Where the Hub keeps its parquet files of a dataset, and where its owner may keep some."""
SECONDS = 60
_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


@contextmanager
def download_from_hub(
    source: str, config: str | None, data_dir: Path
) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """A folder with the parquet files of ``source``, which is "hf:" and an id, and notes about those that are not used.

    ``config`` is the name of one of the dataset's configurations; needed if there are several. The folder is deleted at
    exit. Raises LabError.
    """
    name = source.removeprefix(PREFIX).lstrip("/")
    endpoint = os.environ.get("HF_ENDPOINT", ENDPOINT).rstrip("/")
    if not _ID.fullmatch(name):
        raise LabError(f"{source} is not allowed; {PREFIX}OWNER/NAME is, as in {PREFIX}uoft-cs/cifar10")
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data_dir, prefix=".hub-download-") as folder:
        try:
            notes = _download_dataset(source, f"{endpoint}/", name, config, Path(folder))
        except (LookupError, TypeError) as error:
            raise LabError(f"{source}: {endpoint} does not answer as the Hub does") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise LabError(f"{source} could not be downloaded from {endpoint}: {reason}") from error
        yield Path(folder), notes


def _download_dataset(
    source: str, endpoint: str, name: str, config: str | None, folder: Path
) -> tuple[str, ...]:
    token = os.environ.get("HF_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with httpx2.Client(headers=headers, base_url=endpoint, follow_redirects=True, timeout=SECONDS) as client:
        revision, files = _find_files(client, source, name)
        for path in _choose_config(source, [path for path in files if locate(path) is not None], config):
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            _download(client, f"datasets/{name}/resolve/{revision}/{quote(str(path))}", target)
    return tuple(describe_skipped([path for path in files if locate(path) is None], OTHER_PARTS))


def _find_files(client: httpx2.Client, source: str, name: str) -> tuple[str, list[PurePosixPath]]:
    """The commit and the parquet files of the first revision that has some for training."""
    for revision in REVISIONS:
        answer = client.get(f"api/datasets/{name}/revision/{quote(revision, safe='')}")
        if answer.status_code in (401, 403, 404):
            continue
        document = answer.raise_for_status().json()
        paths = [PurePosixPath(entry["rfilename"]) for entry in document["siblings"]]
        files = [path for path in paths if path.suffix == SUFFIX]
        if any(path.is_absolute() or ".." in path.parts for path in files):
            raise LabError(f"{source} has files outside its folder")
        if any(locate(path) is not None for path in files):
            return str(document["sha"]), files
    raise LabError(
        f"{source}: {client.base_url} has no such dataset, none with parquet files for training, or none that is "
        "public; HF_TOKEN may be required"
    )


def _choose_config(source: str, files: list[PurePosixPath], config: str | None) -> list[PurePosixPath]:
    """The files of one configuration, which is the folder that holds its parts."""
    by_config: dict[str, list[PurePosixPath]] = {}
    for path in files:
        located = locate(path)
        assert located is not None
        by_config.setdefault(located[1].name or "default", []).append(path)
    if config is None and len(by_config) == 1:
        return files
    if config not in by_config:
        raise LabError(f"{source}: --config must be one of {', '.join(sorted(by_config))}")
    return by_config[config]


def _download(client: httpx2.Client, url: str, target: Path) -> None:
    with client.stream("GET", url) as answer, target.open("wb") as file:
        answer.raise_for_status()
        for chunk in answer.iter_bytes():
            file.write(chunk)
