"""What a defence may see: not a test image, not the truth, and a repair not the poisoned set."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import worker.lab.experiment
from tests.lab.defenses.cases import ALL, BADNETS, Spec, spec
from tests.lab.memory import DIGITS_ONLY, MemoryRecorder, MemoryStore, experiment
from worker.lab.data.datasets import Dataset, Split
from worker.lab.defenses import defend
from worker.lab.defenses.base import Defense, RepairDefense
from worker.lab.networks import Network

ABL: Spec = {
    "name": "abl",
    "isolation_epochs": 2,
    "ranking_window": 1,
    "finetune_epochs": 1,
    "unlearning_epochs": 1,
}
EVERY = spec(BADNETS, ABL, *ALL, epochs=3)


def models(recorder: MemoryRecorder) -> dict[str, bytes]:
    return {name: data for name, data in recorder.files.items() if name.endswith("model.safetensors")}


@pytest.fixture(scope="module")
def plain() -> dict[str, bytes]:
    return models(experiment(EVERY, checkpoint_seconds=1e9))


def without_labels(files: dict[str, bytes]) -> dict[str, bytes]:
    """The weights alone: the header says whether the model measured as backdoored."""
    return {name: data[8 + int.from_bytes(data[:8], "little") :] for name, data in files.items()}


def test_no_test_image_changes_a_defended_model(
    plain: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = worker.lab.experiment.load

    def noise(*arguments: Any) -> Dataset:
        data = real(*arguments)
        images = 255 - data.test.images.flip(2)
        return dataclasses.replace(data, test=Split(images, data.test.labels.roll(7)))

    monkeypatch.setattr(worker.lab.experiment, "load", noise)
    assert without_labels(models(experiment(EVERY, checkpoint_seconds=1e9))) == without_labels(plain)


def test_no_flag_changes_a_defended_model(plain: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    real = worker.lab.experiment.rebuild

    def lying(*arguments: Any) -> Any:
        poisoned = real(*arguments)
        return dataclasses.replace(poisoned, is_poisoned=~poisoned.is_poisoned)

    monkeypatch.setattr(worker.lab.experiment, "rebuild", lying)
    assert without_labels(models(experiment(EVERY, checkpoint_seconds=1e9))) == without_labels(plain)


def test_no_test_tensor_hangs_on_what_a_defence_is_handed(monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[Defense] = []

    def watch(spec: Any, lab: Defense) -> Network:
        handed.append(lab)
        return defend(spec, lab)

    monkeypatch.setattr(worker.lab.experiment, "defend", watch)
    recorder, store = MemoryRecorder(), MemoryStore()
    experiment(EVERY, recorder, store, checkpoint_seconds=1e9)
    assert len(handed) == len(EVERY["defenses"])
    data = worker.lab.experiment.load(
        worker.lab.experiment.ExperimentSpec.model_validate(EVERY).dataset, DIGITS_ONLY, 0
    )
    secret = {image.numpy().tobytes() for image in data.test.images} - {
        image.numpy().tobytes() for image in data.train.images
    }
    for lab in handed:
        seen = [tensor for tensor in tensors(lab) if tensor.dtype == torch.uint8]
        images = [image for tensor in seen for image in tensor.reshape(-1, 1, 8, 8)]
        assert not secret & {image.numpy().tobytes() for image in images}
        assert not any(tensor.dtype == torch.bool for tensor in tensors(lab))
        if isinstance(lab, RepairDefense):
            assert len(images) == 72  # the clean set, and no more


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
