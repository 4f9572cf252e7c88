"""`bdlab data fetch`: downloads CIFAR-10 and GTSRB through torchvision."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from worker.lab.contracts import LabError
from worker.lab.data import files
from worker.lab.data.checking import Source, check_source
from worker.lab.data.importing import StoredDataset, check_built_in, dataset_path, dataset_spec
from worker.lab.data.readers.decoding import ImageStack

GTSRB_SIDE = 32


def fetch_dataset(name: str, data_dir: Path) -> StoredDataset:
    """Download, check and store the built-in dataset ``name``; an intact file is kept. Raises LabError."""
    path = dataset_path(name, data_dir)
    if path.exists() and files.is_intact(path):
        facts, sha256 = files.read_header(path)
        return StoredDataset(dataset_spec(name), path, facts, sha256)
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data_dir, prefix=f".{name}-download-") as folder:
        source = _download(name, _SOURCES[name], folder)
    checked = check_built_in(name, check_source(source, test_fraction=None, split_seed=0))
    facts, sha256 = files.write(path, **checked.content)
    return StoredDataset(dataset_spec(name), path, facts, sha256)


def _download(name: str, source: Callable[[str], Source], folder: str) -> Source:
    try:
        from worker.lab.networks._torchvision import torchvision_models  # noqa: PLC0415  # heavy

        torchvision_models()
    except ImportError as error:
        raise LabError(
            "fetching needs torchvision, which is not installed here; run it where the worker is"
        ) from error
    try:
        return source(folder)
    except (OSError, RuntimeError) as error:  # no network, or a digest does not match
        raise LabError(
            f"{name} could not be downloaded ({error}); get it elsewhere as {name}.npz with "
            f"x_train, y_train, x_test, y_test, then run: bdlab data import {name}.npz"
        ) from error


def _cifar10(folder: str) -> Source:
    from torchvision.datasets import CIFAR10  # noqa: PLC0415  # heavy

    train, test = (CIFAR10(folder, train=train, download=True) for train in (True, False))
    return Source(train.data, np.array(train.targets), test.data, np.array(test.targets))


def _gtsrb(folder: str) -> Source:
    """The whole images, resized, without cropping to the sign; labels are the official class ids."""
    from torchvision.datasets import GTSRB  # noqa: PLC0415  # heavy

    arrays = []
    for part in ("train", "test"):
        samples = GTSRB(folder, split=part, download=True)._samples
        stack = ImageStack(len(samples), GTSRB_SIDE)
        stack.extend((Path(path).name, Path(path).read_bytes()) for path, _ in samples)
        arrays.append((stack.array(), np.array([label for _, label in samples])))
    (x_train, y_train), (x_test, y_test) = arrays
    return Source(x_train, y_train, x_test, y_test)


_SOURCES = {"cifar10": _cifar10, "gtsrb": _gtsrb}
