"""Datasets that are larger than memory: the numbers of those in memory, without their memory."""

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.specs.dataset import Imported
from app.specs.experiment import ExperimentSpec
from tests.lab.memory import MemoryRecorder, experiment
from tests.lab.test_other_device import ABL, ATTACKS, DEFENSES, device, spec  # noqa: F401  # a fixture
from worker.lab import experiment as experiment_module
from worker.lab.contracts import DatasetDamagedError, LabError
from worker.lab.data import files, space
from worker.lab.data import streamed as streamed_module
from worker.lab.data.datasets import Dataset, Split, load_whole_dataset
from worker.lab.data.importing import import_dataset
from worker.lab.data.space import Space
from worker.lab.data.streamed import StreamedImages, count_levels
from worker.lab.experiment import run_experiment
from worker.lab.host_memory import Memory
from worker.lab.local import FolderStore

ONE_OF_EACH_KIND = ["all_to_all", "wanet", "input_aware", "adaptive_blend", "poison_frogs", "tact"]
MORE: dict[str, Any] = {
    "adaptive_blend": {"name": "adaptive_blend"},
    "tact": {"name": "tact", "source_class": 1, "cover_classes": [2]},
}
TIMES = {"seconds"}


def load_streamed(*args: Any) -> Dataset:
    whole = load_whole_dataset(*args)

    def stream(split: Split) -> Split:
        assert isinstance(split.images, torch.Tensor)
        return Split(StreamedImages.over(split.images, None), split.labels)

    return replace(whole, train=stream(whole.train), test=stream(whole.test))


def check_equal(a: MemoryRecorder, b: MemoryRecorder) -> None:
    assert not a.failures
    for key, values in a.results.items():
        assert {n: v for n, v in values.items() if n not in TIMES} == {
            n: v for n, v in b.results[key].items() if n not in TIMES
        }, key
    assert a.points == b.points
    assert a.files.keys() == b.files.keys()
    different = {name for name, data in a.files.items() if b.files[name] != data}
    assert {name for name in different if not name.endswith(("manifest.json", "results.json"))} == set()


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_streamed_images_give_the_same_files(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_streamed(spec(ATTACKS.get(name) or MORE[name]), monkeypatch)


@pytest.mark.slow
@pytest.mark.long  # a minute: every defense, twice; the attacks above have the same path of images
def test_defenses_find_the_same_in_streamed_images(monkeypatch: pytest.MonkeyPatch) -> None:
    check_streamed(spec(ATTACKS["badnets"], *DEFENSES), monkeypatch)


def check_streamed(document: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = experiment(document)
    monkeypatch.setattr(experiment_module, "load_whole_dataset", load_streamed)
    check_equal(in_memory, experiment(document))


@pytest.mark.usefixtures("device")
def test_streamed_images_reach_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment_module, "load_whole_dataset", load_streamed)
    document = spec(ATTACKS["wanet"], {"name": "abl", **ABL}, {"name": "strip", "overlays": 2})
    assert not experiment(document).failures


def test_selections_and_changes_are_those_of_a_tensor() -> None:
    images = torch.randint(256, (10, 1, 2, 2), dtype=torch.uint8)
    streamed = StreamedImages.over(images, None)
    nothing = torch.tensor([], dtype=torch.int64)
    for index in (3, slice(2, 5), torch.tensor([4, 4, 0]), torch.arange(10) % 2 == 0, nothing):
        assert torch.equal(streamed[index], images[index])
    changed = images.clone()
    changed[torch.tensor([7, 1])] = 9
    streamed = streamed.replaced([(torch.tensor([7, 1]), torch.full((2, 1, 2, 2), 9, dtype=torch.uint8))])
    assert torch.equal(streamed[:], changed)
    assert torch.equal(torch.cat(list(streamed.split(3))), changed)
    assert torch.equal(streamed.rows(torch.tensor([7, 2])).joined(streamed)[:3], changed[[7, 2, 0]])
    assert torch.equal(count_levels(streamed), count_levels(changed))
    assert torch.equal(images, StreamedImages.over(images, None)[:])


def test_a_dataset_that_is_large_for_the_machine_is_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path, "large", train=60, test=30, side=8)
    size = (tmp_path / "imported/large.safetensors").stat().st_size
    named = Imported(key="large")
    for memory, expected in ((3 * size, torch.Tensor), (3 * size - 3, StreamedImages)):
        monkeypatch.setattr(streamed_module, "read_memory", lambda memory=memory: Memory(memory, 0))
        whole = load_whole_dataset(named, tmp_path)
        assert isinstance(whole.train.images, expected)
    monkeypatch.setattr(files, "_INTACT", set())
    with (tmp_path / "imported/large.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with pytest.raises(DatasetDamagedError, match="'large' is damaged"):
        load_whole_dataset(named, tmp_path)


def test_an_import_that_is_large_for_the_machine_is_made_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 3), np.uint8)
    np.savez(tmp_path / "set.npz", x_train=x, y_train=np.arange(40) % 2)
    arguments: dict[str, Any] = {
        "test": None,
        "test_fraction": 0.25,
        "split_seed": 0,
        "size": None,
        "replace": False,
    }
    stored = [import_dataset(tmp_path / "set.npz", tmp_path, key="a", built_in=None, **arguments)]
    on_disk: list[object] = []
    memmap = np.memmap
    monkeypatch.setattr(space, "read_memory", lambda: Memory(1000, 0))
    monkeypatch.setattr(
        np, "memmap", lambda *args, **named: on_disk.append(named["shape"]) or memmap(*args, **named)
    )
    stored.append(import_dataset(tmp_path / "set.npz", tmp_path, key="b", built_in=None, **arguments))
    assert on_disk == [(40, 6, 6, 3), (40, 3, 6, 6), (10, 3, 6, 6)]
    assert stored[0].sha256 == stored[1].sha256
    assert sorted(path.name for path in (tmp_path / "imported").iterdir()) == [
        "a.safetensors",
        "b.safetensors",
    ]


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"GiB for images do not fit into .*: (No space left|File too large)"):
        Space(folder=tmp_path).new_array((2**20, 2**20, 2**20))


@pytest.mark.long  # minutes: 10,000 images of 224 px in 1,000 classes, 1.7 GB
@pytest.mark.timeout(3600)
def test_a_thousand_classes_train_one_epoch_with_flat_memory(tmp_path: Path) -> None:
    write_images(tmp_path, "small", train=1000, test=1000, classes=1000)
    write_images(tmp_path, "large", train=10_000, test=1000, classes=1000)
    check_flat(tmp_path, 0.1)


def check_flat(folder: Path, share: float) -> None:
    """A run on the large set takes at most ``share`` of its bytes more of its own memory than one on the small set."""
    program = "import sys; from tests.lab import test_streaming as t; t.run_measured(t.Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], check=True, capture_output=True, text=True
    )
    small, large = map(int, done.stdout.split())
    assert large - small < share * (folder / "imported/large.safetensors").stat().st_size


def run_measured(folder: Path) -> None:
    """Print the most memory of its own that this process has during a run on the small set, and on the large one."""
    torch.set_num_threads(1)
    streamed_module.read_memory = space.read_memory = lambda: Memory(2**23, 0)  # everything is streamed
    for key in ("small", "large"):
        document = {
            "dataset": {"name": "imported", "key": key},
            "model": {"name": "small_cnn", "width": 4},
            "attack": {"name": "badnets", "poisoning_rate": 0.02},
            "training": {"epochs": 1, "batch_size": 8},
        }
        done, peaks = threading.Event(), [0]

        def watch(done: threading.Event = done, peaks: list[int] = peaks) -> None:
            while not done.wait(0.01):
                peaks.append(own_memory())

        watcher = threading.Thread(target=watch)
        watcher.start()
        run_experiment(
            ExperimentSpec.model_validate(document),
            MemoryRecorder(),
            FolderStore(folder / "stages"),
            data_dir=folder,
            device="cpu",
        )
        done.set()
        watcher.join()
        print(max(peaks))


def own_memory() -> int:
    """Bytes of this process that are not pages of files, which the system drops when memory is needed."""
    status = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in status if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


def write_images(folder: Path, key: str, train: int, test: int, side: int = 224, classes: int = 20) -> None:
    """Random images as the imported dataset ``key``."""

    def images(count: int) -> tuple[Any, Any]:
        labels = np.arange(count) % classes
        x = np.lib.format.open_memmap(folder / f"{key}.npy", "w+", np.uint8, (count, 3, side, side))
        for i in range(0, count, 100):
            x[i : i + 100] = np.random.default_rng(i).integers(0, 256, x[i : i + 100].shape, np.uint8)
        (folder / f"{key}.npy").unlink()
        return x, labels

    (x, y), (x_test, y_test) = images(train), images(test)
    names = tuple(map(str, range(classes)))
    path = folder / f"imported/{key}.safetensors"
    files.write(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test, class_names=names)
