"""Shared by the tests of attacks: specs, small datasets, and runs in a folder."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.data.catalog import service as catalog
from app.specs.attack import PoisoningAttack, PreparationStage
from app.specs.experiment import ExperimentSpec
from app.specs.facts import DatasetFacts
from worker.lab.attacks import Attack, PoisonedSet, Prepared, make_attack
from worker.lab.attacks.poisoning import build_poisoned_set, make_poison
from worker.lab.data.datasets import Dataset, Split, load_dataset
from worker.lab.experiment import run_experiment
from worker.lab.local import FolderRecorder, FolderStore


def experiment(**attack: Any) -> ExperimentSpec:
    return ExperimentSpec.model_validate({"attack": attack})


def stages_of(name: str) -> list[PreparationStage]:
    spec = experiment(name=name).attack
    assert isinstance(spec, PoisoningAttack)
    return spec.stages()


EVERY = tuple(
    name for name in catalog.names("attack") if isinstance(experiment(name=name).attack, PoisoningAttack)
)
CHEAP = tuple(name for name in EVERY if not stages_of(name))
"""Those whose trigger needs no training."""


def facts(channels: int = 1, height: int = 4, width: int = 4, classes: int = 10) -> DatasetFacts:
    return DatasetFacts(
        class_names=tuple(str(c) for c in range(classes)),
        channels=channels,
        height=height,
        width=width,
        train_counts=(10,) * classes,
        test_counts=(10,) * classes,
    )


def attack(of: DatasetFacts, **fields: Any) -> Attack[Any]:
    made = make_attack(experiment(**fields).attack, of)
    assert made is not None
    return made


def image(rows: list[list[int]]) -> Tensor:
    """One gray image, uint8 ``[1, 1, H, W]``."""
    return torch.tensor(rows, dtype=torch.uint8)[None, None]


def digits(seed: int = 0) -> Dataset:
    return load_dataset(experiment(name="badnets").dataset, Path("no-folder-needed"), seed)


def state_of(spec: ExperimentSpec, data: Dataset, seed: int = 0) -> dict[str, Tensor]:
    """State of a trigger that needs no training."""
    from worker.lab.interactive import state_without_training  # noqa: PLC0415

    made = make_attack(spec.attack, data.facts)
    assert made is not None
    return state_without_training(spec, data, made, seed)


def poisoned(spec: ExperimentSpec, data: Dataset, seed: int = 0) -> PoisonedSet:
    """The poisoned set of an attack that needs no training."""
    made = make_attack(spec.attack, data.facts)
    assert made is not None
    prepared = Prepared(state_of(spec, data, seed))
    return build_poisoned_set(data.train, make_poison(spec, data, made, prepared, seed))


def split(images: Tensor, labels: list[int]) -> Split:
    return Split(images, torch.tensor(labels))


def run_in(folder: Path, attack: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A whole experiment on a few digits with short training; returns the results."""
    document = {
        "dataset": {"name": "digits", "train_size": 300, "test_size": 100},
        "model": {"name": "small_cnn", "width": 8},
        "attack": attack,
        "training": {"epochs": 2, "batch_size": 50},
    } | more
    recorder = FolderRecorder(folder / "out")
    try:
        return run_experiment(
            ExperimentSpec.model_validate(document),
            recorder,
            FolderStore(folder / "stages"),
            data_dir=folder,
            checkpoint_seconds=0,
        )
    finally:
        recorder.close()
