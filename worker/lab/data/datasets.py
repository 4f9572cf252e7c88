"""Datasets as tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.specs.dataset import DatasetSpec, Digits, Imported, Uploaded
from app.specs.facts import BUILT_IN, GIVEN_TENSORS, STANDARD_SHA256, DatasetFacts, allocate
from worker.lab.compute import derive_seed
from worker.lab.contracts import DatasetDamagedError, DatasetMissingError, LabError
from worker.lab.data import files
from worker.lab.data.streamed import Images, StreamedImages, exceeds_memory, select_rows


@dataclass(frozen=True)
class Split:
    """``images`` uint8 ``[N, C, H, W]`` and ``labels`` int64 ``[N]``."""

    images: Images
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, index: Tensor) -> "Split":
        return Split(select_rows(self.images, index), self.labels[index])

    def to(self, device: torch.device) -> "Split":
        images = self.images
        if isinstance(images, Tensor) and device != images.device and exceeds_memory(images.nbytes, device):
            images = StreamedImages.over(images, None)
        return Split(images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Truth:
    """What a dataset that came poisoned says about itself; None where it does not. It only scores defenses.

    ``is_poisoned`` and ``is_cross`` bool ``[N]`` and ``clean_labels`` int64 ``[N]`` are about the training images.
    ``triggered`` are test images with the trigger and their true labels, in no order that the test split knows of, and
    ``targets`` int64 the classes that the attacker aims at.
    """

    is_poisoned: Tensor | None = None
    is_cross: Tensor | None = None
    clean_labels: Tensor | None = None
    triggered: Split | None = None
    targets: Tensor | None = None

    @classmethod
    def of(cls, tensors: Mapping[str, NDArray[Any]]) -> "Truth":
        """From the tensors of a dataset's file."""
        given = {name: torch.from_numpy(tensors[name]) for name in GIVEN_TENSORS if name in tensors}
        images = given.get("x_test_triggered")
        return cls(
            given.get("is_poisoned"),
            given.get("is_cross"),
            given.get("clean_labels"),
            None if images is None else Split(images, given["y_test_triggered"]),
            given.get("y_test_target"),
        )

    def rows(self, index: Tensor) -> "Truth":
        """What is known about these training images."""
        names = ("is_poisoned", "is_cross", "clean_labels")
        return replace(self, **{n: t[index] for n in names if (t := getattr(self, n)) is not None})

    def to(self, device: torch.device) -> "Truth":
        return Truth(*(None if part is None else part.to(device) for part in vars(self).values()))


@dataclass(frozen=True)
class Dataset:
    """A training and a test split with their facts. ``version`` is the digest of the whole dataset's content, which
    was compared with it."""

    train: Split
    test: Split
    facts: DatasetFacts
    version: str
    truth: Truth = Truth()

    def to(self, device: torch.device) -> "Dataset":
        return replace(
            self, train=self.train.to(device), test=self.test.to(device), truth=self.truth.to(device)
        )


def load_dataset(spec: DatasetSpec, data_dir: Path, seed: int) -> Dataset:
    """Load a dataset on the CPU, reduced to the subset that follows from ``spec`` and ``seed``.

    Raises as `load_whole_dataset` does.
    """
    return draw_subset(load_whole_dataset(spec, data_dir), spec, seed)


def draw_subset(whole: Dataset, spec: DatasetSpec, seed: int) -> Dataset:
    """The subset of a whole dataset that follows from ``spec`` and ``seed``; shares the tensors of a split that stays
    whole."""
    facts = whole.facts.subset(spec)
    train, test, truth = whole.train, whole.test, whole.truth
    if sum(facts.train_counts) != len(train):
        rows = _draw(train.labels, facts.train_counts, derive_seed("train subset", seed))
        train, truth = train.rows(rows), truth.rows(rows)
    if sum(facts.test_counts) != len(test):
        test = test.rows(_draw(test.labels, facts.test_counts, derive_seed("test subset", seed)))
    return Dataset(train, test, facts, whole.version, truth)


def load_whole_dataset(spec: DatasetSpec, data_dir: Path) -> Dataset:
    """A dataset on the CPU without taking the subset of ``spec``; its images stay on disk if memory is too small.

    Raises DatasetMissingError, DatasetDamagedError; their messages name the command that gets the dataset.
    """
    if isinstance(spec, Digits):
        return _digits()
    if isinstance(spec, Imported):
        path, command = (
            data_dir / "imported" / f"{spec.key}.safetensors",
            f"bdlab data import FILE --name {spec.key}",
        )
    elif isinstance(spec, Uploaded):
        path, command = (
            uploaded_path(spec.dataset_id, data_dir),
            "a worker of the service that it was uploaded to",
        )
    else:
        path, command = data_dir / f"{spec.name}.safetensors", f"bdlab data fetch {spec.name}"
    if not path.is_file():
        raise DatasetMissingError(f"dataset: {path.stem!r} is not in {data_dir}; get it with: {command}")
    try:
        streamed = exceeds_memory(path.stat().st_size, torch.device("cpu"))
        tensors, facts, version = files.read(path, mapped=streamed)
    except DatasetMissingError:
        raise
    except LabError as error:
        raise DatasetDamagedError(f"dataset: {error}; get it again with: {command}") from error

    def split(part: str) -> Split:
        images, labels = tensors[f"x_{part}"], torch.from_numpy(tensors[f"y_{part}"])
        return Split(
            StreamedImages.of_file(images, path.parent) if streamed else torch.from_numpy(images), labels
        )

    return Dataset(split("train"), split("test"), facts, version, Truth.of(tensors))


def uploaded_path(dataset_id: str, data_dir: Path) -> Path:
    """Path of an uploaded dataset once a worker has fetched it."""
    return data_dir / "uploaded" / f"{dataset_id}.safetensors"


@lru_cache(maxsize=1)
def _digits() -> Dataset:
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise DatasetMissingError(
            "dataset: 'digits' comes with scikit-learn; get it with: pip install scikit-learn"
        )
    # Reads scikit-learn's file without importing scikit-learn, which would take a second of every run.
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    damaged = DatasetDamagedError(
        f"dataset: the dataset 'digits' is damaged: {path} does not hold what scikit-learn publishes; "
        "get it again with: pip install --force-reinstall scikit-learn"
    )
    try:
        table = np.loadtxt(path, delimiter=",")
        # Its gray levels 0 to 16 are scaled to 0 to 255.
        levels = (table[:, :-1] * (255 / 16)).round().astype(np.uint8).reshape(-1, 1, 8, 8)
    except Exception as error:  # from gzip, zlib or numpy
        raise damaged from error
    images = torch.from_numpy(levels)
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    facts = BUILT_IN["digits"]
    test = _draw(labels, facts.test_counts, derive_seed("digits test split"))
    in_test = torch.zeros(len(labels), dtype=torch.bool)
    in_test[test] = True
    train, tests = ((images[rows], labels[rows]) for rows in (~in_test, in_test))
    arrays = (tensor.numpy() for tensor in (*train, *tests))
    version = files.digest(dict(zip(files.NAMES, arrays, strict=True)))
    if version != STANDARD_SHA256["digits"]:
        raise damaged
    return Dataset(Split(*train), Split(*tests), facts, version)


def _draw(labels: Tensor, counts: tuple[int, ...], seed: int) -> Tensor:
    """Sorted indices of ``counts[c]`` random samples of every class c."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    chosen = [order[labels[order] == c][:count] for c, count in enumerate(counts)]
    return torch.cat(chosen).sort().values


def draw_stratified(labels: Tensor, size: int, classes: int, seed: int) -> Tensor:
    """Sorted indices of ``size`` samples, drawn with class proportions kept."""
    counts = tuple(torch.bincount(labels.cpu(), minlength=classes).tolist())
    return _draw(labels.cpu(), allocate(counts, min(size, len(labels))), seed)
