"""What a defense may see: no test image, no true flags, and for repair and input detection no poisoned set.

An input detection scores test images, but what it flags by is fixed before.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import worker.lab.experiment
from app.specs.dataset import Digits
from tests.lab.defenses.cases import ALL, BADNETS, Spec, spec
from tests.lab.memory import DIGITS_ONLY, experiment
from worker.lab.data.datasets import Dataset, Split, load_dataset
from worker.lab.defenses import defend
from worker.lab.defenses.base import (
    DataFreeRepair,
    Defense,
    InputDetectionDefense,
    RepairDefense,
    UnlabeledRepair,
)
from worker.lab.networks import Network

ABL: Spec = {
    "name": "abl",
    "isolation_epochs": 2,
    "ranking_window": 1,
    "finetune_epochs": 1,
    "unlearning_epochs": 1,
}
EVERY = spec(BADNETS, ABL, *ALL, epochs=3) | {"dataset": {"name": "digits", "train_size": 300}}


@dataclasses.dataclass
class Done:
    """The weights and the detector of every arm, and the arguments of each defense."""

    weights: dict[str, bytes]
    handed: list[Defense]


def run_all() -> Done:
    handed: list[Defense] = []

    def watch(spec: Any, lab: Defense) -> Network:
        handed.append(lab)
        return defend(spec, lab)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker.lab.experiment, "defend", watch)
        recorder = experiment(EVERY, checkpoint_seconds=1e9)
    assert len(handed) == len(EVERY["defenses"])
    files = {
        name: data
        for name, data in recorder.files.items()
        if name.endswith(("/model.safetensors", "/detector.safetensors"))
    }
    return Done(without_labels(files), handed)


@pytest.fixture(scope="module")
def plain() -> Done:
    return run_all()


def without_labels(files: dict[str, bytes]) -> dict[str, bytes]:
    """The weights without the header, which has the measured label ``backdoored``."""
    return {name: data[8 + int.from_bytes(data[:8], "little") :] for name, data in files.items()}


def test_no_test_image_changes_a_defended_model(plain: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    real = worker.lab.experiment.draw_subset

    def turned(*arguments: Any) -> Dataset:
        data = real(*arguments)
        return dataclasses.replace(data, test=Split(255 - data.test.images.flip(2), data.test.labels.roll(7)))

    monkeypatch.setattr(worker.lab.experiment, "draw_subset", turned)
    assert run_all().weights == plain.weights


def test_no_flag_changes_a_defended_model(plain: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    real = worker.lab.experiment.build_poisoned_set

    def lying(*arguments: Any) -> Any:
        poisoned = real(*arguments)
        return dataclasses.replace(poisoned, is_poisoned=~poisoned.is_poisoned)

    monkeypatch.setattr(worker.lab.experiment, "build_poisoned_set", lying)
    assert run_all().weights == plain.weights


def test_no_test_tensor_is_reachable_from_a_defense_s_arguments(plain: Done) -> None:
    data = load_dataset(Digits(), DIGITS_ONLY, 0)
    secret = {image.numpy().tobytes() for image in data.test.images} - {
        image.numpy().tobytes() for image in data.train.images
    }
    for lab in plain.handed:
        reachable = list(tensors(lab))
        images = [image for t in reachable if t.dtype == torch.uint8 for image in t.reshape(-1, 1, 8, 8)]
        assert not secret & {image.numpy().tobytes() for image in images}
        assert not any(tensor.dtype == torch.bool for tensor in reachable)
        if isinstance(lab, RepairDefense | InputDetectionDefense) and lab.clean is not None:
            assert len(images) == 15  # only the clean set
        elif isinstance(lab, UnlabeledRepair):
            assert len(images) == 300
            assert not any(
                tensor.dtype == torch.int64 and len(tensor) == 300 for tensor in reachable if tensor.ndim
            )
        elif isinstance(lab, DataFreeRepair):
            assert not images


def tensors(thing: object) -> Iterator[Tensor]:
    """Every tensor that can be reached through attributes."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, torch.nn.Module):
        yield from thing.state_dict().values()
    elif dataclasses.is_dataclass(thing):
        for one in dataclasses.fields(thing):
            yield from tensors(getattr(thing, one.name))
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from tensors(value)
    elif isinstance(thing, (list, tuple)):
        for value in thing:
            yield from tensors(value)
