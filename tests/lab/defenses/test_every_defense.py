"""What holds for every defense.

It sees no test image, no true flag, and for repair and input detection no poisoned set. (An input detection scores test
images, but what it flags by is fixed before.) Its stages are computed once, and loaded with equal results.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import worker.lab.experiment
import worker.lab.seed_run
from app.specs.dataset import Digits
from tests.lab.defenses.cases import ALL, BADNETS, Spec, spec
from tests.lab.memory import DIGITS_ONLY, MemoryRecorder, MemoryStore, experiment
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
    """A run of every defense: where it was recorded and stored, and the arguments of each defense."""

    recorder: MemoryRecorder
    store: MemoryStore
    handed: list[Defense]

    @property
    def weights(self) -> dict[str, bytes]:
        """The weights and the detector of every arm."""
        names = ("/model.safetensors", "/detector.safetensors")
        return without_labels(
            {name: data for name, data in self.recorder.files.items() if name.endswith(names)}
        )


def run_all() -> Done:
    handed: list[Defense] = []
    store = MemoryStore()

    def watch(spec: Any, lab: Defense) -> Network:
        handed.append(lab)
        return defend(spec, lab)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker.lab.seed_run, "defend", watch)
        recorder = experiment(EVERY, store=store, checkpoint_seconds=1e9)
    assert not recorder.failures
    assert len(handed) == len(EVERY["defenses"])
    return Done(recorder, store, handed)


@pytest.fixture(scope="module")
def plain() -> Done:
    return run_all()


def without_labels(files: dict[str, bytes]) -> dict[str, bytes]:
    """The weights without the header, which has the measured label ``backdoored``."""
    return {name: data[8 + int.from_bytes(data[:8], "little") :] for name, data in files.items()}


def test_neither_test_images_nor_flags_change_a_defended_model(
    plain: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, poison = worker.lab.experiment.draw_subset, worker.lab.seed_run.build_poisoned_set

    def turned(*arguments: Any) -> Dataset:
        data = draw(*arguments)
        return dataclasses.replace(data, test=Split(255 - data.test.images.flip(2), data.test.labels.roll(7)))

    def lying(*arguments: Any) -> Any:
        poisoned = poison(*arguments)
        return dataclasses.replace(poisoned, is_poisoned=~poisoned.is_poisoned)

    monkeypatch.setattr(worker.lab.experiment, "draw_subset", turned)
    monkeypatch.setattr(worker.lab.seed_run, "build_poisoned_set", lying)
    changed = run_all()
    assert changed.weights == plain.weights
    assert changed.recorder.results != plain.recorder.results  # the changes were seen by what measures


def test_every_stage_is_computed_once_and_then_loaded_from_the_store(plain: Done) -> None:
    assert plain.store.computed.count("victim") == 1
    computed = list(plain.store.computed)
    again = experiment(EVERY, store=plain.store)
    assert plain.store.computed == computed
    assert again.results == plain.recorder.results
    assert again.warnings == plain.recorder.warnings != []
    # Equal work gives equal bytes, so that a run that reports again stores nothing new; the manifest holds times.
    first = plain.recorder.files
    assert first.keys() == again.files.keys()
    assert {name for name in first if first[name] != again.files[name]} == {"manifest.json"}


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
