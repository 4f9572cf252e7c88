"""`bdlab data fetch`: downloads the datasets that have a name of their own, through torchvision where it has them."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from worker.lab.contracts import LabError
from worker.lab.data import files
from worker.lab.data.checking import Array, Source, check_source
from worker.lab.data.importing import StoredDataset, check_built_in, dataset_path, dataset_spec
from worker.lab.data.readers import tiny_imagenet
from worker.lab.data.readers.decoding import ImageStack
from worker.lab.data.readers.trees import open_tree
from worker.lab.data.space import MOST_BYTES, Space

GTSRB_SIDE = 32
IMAGENETTE_SIDE = 64
DIGITS = tuple("0123456789")
TINY_IMAGENET = ("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de")
"""URL and MD5."""


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


def _cifar100(folder: str) -> Source:
    from torchvision.datasets import CIFAR100  # noqa: PLC0415  # heavy

    train, test = (CIFAR100(folder, train=train, download=True) for train in (True, False))
    return Source(
        train.data, np.array(train.targets), test.data, np.array(test.targets), tuple(train.classes)
    )


def _svhn(folder: str) -> Source:
    from torchvision.datasets import SVHN  # noqa: PLC0415  # heavy

    train, test = (SVHN(folder, split=split, download=True) for split in ("train", "test"))
    return Source(train.data, train.labels, test.data, test.labels, DIGITS)


def _mnist(folder: str) -> Source:
    from torchvision.datasets import MNIST  # noqa: PLC0415  # heavy

    train, test = (MNIST(folder, train=train, download=True) for train in (True, False))
    return Source(train.data.numpy(), train.targets.numpy(), test.data.numpy(), test.targets.numpy(), DIGITS)


def _fashion_mnist(folder: str) -> Source:
    from torchvision.datasets import FashionMNIST  # noqa: PLC0415  # heavy

    train, test = (FashionMNIST(folder, train=train, download=True) for train in (True, False))
    names = tuple(FashionMNIST.classes)
    return Source(train.data.numpy(), train.targets.numpy(), test.data.numpy(), test.targets.numpy(), names)


def _stl10(folder: str) -> Source:
    """The labeled images; the archive of 2.6 GB has 100,000 others."""
    from torchvision.datasets import STL10  # noqa: PLC0415  # heavy

    train, test = (STL10(folder, split=split, download=True) for split in ("train", "test"))
    return Source(train.data, train.labels, test.data, test.labels, tuple(train.classes))


def _imagenette(folder: str) -> Source:
    from torchvision.datasets import Imagenette  # noqa: PLC0415  # heavy

    train, test = (Imagenette(folder, split=s, size="160px", download=s == "train") for s in ("train", "val"))
    (x, y), (x_test, y_test) = (_decode(part._samples, IMAGENETTE_SIDE) for part in (train, test))
    return Source(x, y, x_test, y_test, tuple(names[0] for names in train.classes))


def _tiny_imagenet(folder: str) -> Source:
    from torchvision.datasets.utils import download_url  # noqa: PLC0415  # heavy

    url, md5 = TINY_IMAGENET
    download_url(url, folder, md5=md5)
    with open_tree(Path(folder) / Path(url).name, MOST_BYTES) as tree:
        root = tiny_imagenet.find_root(tree)
        if root is None:
            raise LabError("tiny_imagenet: the archive has no val_annotations.txt")
        return tiny_imagenet.read(tree, root, None, Space())


def _gtsrb(folder: str) -> Source:
    """The whole images, resized, without cropping to the sign; labels are the official class ids."""
    from torchvision.datasets import GTSRB  # noqa: PLC0415  # heavy

    parts = (GTSRB(folder, split=split, download=True) for split in ("train", "test"))
    (x, y), (x_test, y_test) = (_decode(part._samples, GTSRB_SIDE) for part in parts)
    return Source(x, y, x_test, y_test)


def _decode(samples: list[tuple[str, int]], side: int) -> tuple[Array, Array]:
    """Images of files, resized, and labels."""
    stack = ImageStack(len(samples), side, Space())
    stack.extend((Path(path).name, Path(path).read_bytes()) for path, _ in samples)
    return stack.array(), np.array([label for _, label in samples])


_SOURCES = {
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "gtsrb": _gtsrb,
    "svhn": _svhn,
    "mnist": _mnist,
    "fashion_mnist": _fashion_mnist,
    "stl10": _stl10,
    "imagenette": _imagenette,
    "tiny_imagenet": _tiny_imagenet,
}
