"""The lab beside the usual way of backdoor benchmarks, in one run: poisoning, training, ranking, evaluation.

``python benchmarks/peers.py`` prints a Markdown table; a quarter of an hour on two cores. The usual way, written here
after the settings that BackdoorBench and the ABL authors publish: a `Dataset` of PIL images that are poisoned one by
one, torchvision's transforms, a `DataLoader` with one process per core, float32 in the plain layout, and for ABL's
ranking a batch size of 1. Both have the same images (random ones of CIFAR-10's shape), networks, batch size and
optimizer, and all cores. ``--device cuda`` compares on a GPU.
"""

import argparse
import itertools
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from app.specs.experiment import ExperimentSpec
from app.specs.facts import BUILT_IN
from app.specs.model import ModelSpec
from app.specs.stages import plan
from worker.lab.attacks import apply_trigger, make_attack
from worker.lab.compute import Compute, choose_compute
from worker.lab.data.augment import Augment
from worker.lab.evaluation import predict_logits, sample_losses
from worker.lab.local import FolderRecorder, FolderStore
from worker.lab.networks import Network, build_network
from worker.lab.networks._torchvision import torchvision_models
from worker.lab.stages import Progress, StageRun
from worker.lab.training import Recipe, train

BATCH, TEST_BATCH = 128, 256
SINGLES = 300
"""Images that the ranking with a batch size of 1 is timed on."""
RATE, TARGET = 0.1, 0
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
NETWORKS = ("resnet18", "preact_resnet18", "wide_resnet_16_1")


class PoisonedPictures(Dataset[tuple[Tensor, int]]):
    """PIL images with a white square of 3 x 3 in the corner of some, stamped when the set is made."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, poisoned: set[int], transform: Any) -> None:
        self.transform = transform
        self.pictures = []
        for index, array in enumerate(images):
            picture, label = Image.fromarray(array), int(labels[index])
            if index in poisoned:
                changed = np.asarray(picture).copy()
                changed[-3:, -3:] = 255
                picture, label = Image.fromarray(changed), TARGET
            self.pictures.append((picture, label))

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture, label = self.pictures[index]
        return self.transform(picture), label


class Usual:
    """The way of the benchmarks."""

    def __init__(self, device: str) -> None:
        torchvision_models()  # a torchvision that does not match torch is imported only in this way
        from torchvision import transforms  # noqa: PLC0415

        normalized = [transforms.ToTensor(), transforms.Normalize(MEAN, DEVIATION)]
        self.augmented = transforms.Compose(
            [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), *normalized]
        )
        self.plain = transforms.Compose(normalized)
        self.device = device
        self.processes = os.cpu_count() or 1

    def poison(self, images: Tensor, labels: Tensor) -> PoisonedPictures:
        chosen = set(range(int(RATE * len(images))))
        return PoisonedPictures(images.permute(0, 2, 3, 1).numpy(), labels.numpy(), chosen, self.augmented)

    def train_epochs(self, network: nn.Module, data: PoisonedPictures, epochs: int) -> float:
        """Seconds of the fastest epoch."""
        network.to(self.device).train()
        optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.9, weight_decay=5e-4)
        loader = DataLoader(
            data, BATCH, shuffle=True, num_workers=self.processes, multiprocessing_context="fork"
        )
        seconds = []
        for _ in range(epochs):
            start = time.perf_counter()
            total = 0.0
            for x, y in loader:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(network(x.to(self.device)), y.to(self.device))
                loss.backward()
                optimizer.step()
                total += loss.item()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    def rank(self, network: nn.Module, data: PoisonedPictures) -> float:
        """Seconds for the loss of every image, one at a time as in the ABL authors' compute_loss_value."""
        network.eval()
        single = torch.utils.data.Subset(data, range(SINGLES))
        start = time.perf_counter()
        with torch.no_grad():
            for x, y in DataLoader(single, 1, num_workers=self.processes, multiprocessing_context="fork"):
                nn.functional.cross_entropy(network(x.to(self.device)), y.to(self.device)).item()
        return (time.perf_counter() - start) * len(data) / SINGLES

    def evaluate(self, network: nn.Module, images: Tensor, labels: Tensor) -> float:
        """Seconds for the accuracy on clean and triggered images, which are made first."""
        network.eval()
        arrays = images.permute(0, 2, 3, 1).numpy()
        start = time.perf_counter()
        for poisoned in (set[int](), set(range(len(images)))):
            data = PoisonedPictures(arrays, labels.numpy(), poisoned, self.plain)
            correct = 0
            with torch.no_grad():
                for x, y in DataLoader(
                    data, TEST_BATCH, num_workers=self.processes, multiprocessing_context="fork"
                ):
                    correct += int((network(x.to(self.device)).argmax(1).cpu() == y).sum())
        return time.perf_counter() - start


class Lab:
    """The lab, at one precision."""

    def __init__(self, compute: Compute) -> None:
        self.compute = compute
        self.spec = ExperimentSpec.model_validate(
            {"dataset": {"name": "cifar10"}, "attack": {"name": "badnets", "preset": "benchmark"}}
        )
        attack = make_attack(self.spec.attack, BUILT_IN["cifar10"])
        assert attack is not None
        self.trigger = attack.trigger({})

    def poison(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images, labels, count = images.clone(), labels.clone(), int(RATE * len(images))
        images[:count], labels[:count] = apply_trigger(self.trigger, images[:count]), TARGET
        return images.to(self.compute.device), labels.to(self.compute.device)

    def train_epochs(self, network: Network, data: tuple[Tensor, Tensor], epochs: int) -> float:
        """Seconds of the fastest epoch."""
        ends = [time.perf_counter()]

        def after(network: Network, epoch: int) -> None:
            if self.compute.device.type == "cuda":
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

        with recording(self.spec, self.compute) as run:
            train(
                run,
                network,
                *data,
                Recipe(epochs, BATCH, 0.01, 0.9, 5e-4, augment=Augment(4, True)),
                after_epoch=after,
            )
        return min(b - a for a, b in itertools.pairwise(ends))

    def rank(self, network: Network, data: tuple[Tensor, Tensor]) -> float:
        start = time.perf_counter()
        sample_losses(network, *data, self.compute).argsort().cpu()
        return time.perf_counter() - start

    def evaluate(self, network: Network, images: Tensor, labels: Tensor) -> float:
        images, labels = images.to(self.compute.device), labels.to(self.compute.device)
        start = time.perf_counter()
        for shown, wanted in (
            (images, labels),
            (apply_trigger(self.trigger, images), torch.full_like(labels, TARGET)),
        ):
            int((predict_logits(network, shown, self.compute).argmax(1) == wanted).sum())
        return time.perf_counter() - start


@contextmanager
def recording(spec: ExperimentSpec, compute: Compute) -> Iterator[StageRun]:
    """A stage of the lab in a folder of its own, without checkpoints."""
    with tempfile.TemporaryDirectory() as folder:
        recorder = FolderRecorder(Path(folder))
        stage = next(stage for stage in plan(spec, "") if stage.kind == "victim")
        store = FolderStore(Path(folder) / "stages")
        yield StageRun(stage, recorder, store, compute, Progress(1), 1e9, first_step=0)
        recorder.close()


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


Sets = list[tuple[Tensor, Tensor]]


def measure(way: str, network: str, device: str, sets: Sets) -> dict[str, float]:
    """Seconds of every step, and the largest memory in MB of this process and those that it started."""
    torch.use_deterministic_algorithms(False)
    chosen: Any = Usual(device) if way == "usual" else Lab(choose_compute(device, way, False))  # type: ignore[arg-type]
    spec: ModelSpec = TypeAdapter(ModelSpec).validate_python({"name": network})
    built = build_network(spec, BUILT_IN["cifar10"], 0)
    poisoning, data = timed(lambda: chosen.poison(*sets[0]))
    seconds = {
        "poisoning, s": poisoning,
        "training, s an epoch": chosen.train_epochs(built, data, 2),
        "ranking losses, s": chosen.rank(built, data),
        "evaluation, s": chosen.evaluate(built, *sets[1]),
    }
    own, started = (
        resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return seconds | {"memory, MB": own + (os.cpu_count() or 1) * started}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=f"of {', '.join(NETWORKS)}")
    parser.add_argument(
        "--images", type=int, default=5000, help="training images; a fifth as many test images"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    drawn = torch.Generator().manual_seed(0)
    sets = [
        (torch.randint(256, (n, 3, 32, 32), generator=drawn, dtype=torch.uint8), torch.arange(n) % 10)
        for n in (options.images, options.images // 5)
    ]
    print(
        f"{options.images} training and {options.images // 5} test images of 32x32, {options.device}, "
        f"{torch.get_num_threads()} threads, {platform.processor() or platform.machine()}, torch {torch.__version__}; "
        "in brackets, how many times as much the usual way needs\n"
    )
    print("| network | step | usual | lab, float32 | lab, bfloat16 |\n|---|---|---|---|---|")
    for name in options.networks:
        columns = []
        for way in ("usual", "float32", "bfloat16"):
            # A process for each, so that their memory can be told apart.
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                columns.append(pool.submit(measure, way, name, options.device, sets).result())
        for step, usual in columns[0].items():
            cells = [f"{column[step]:.2f} ({usual / column[step]:.1f})" for column in columns[1:]]
            print(f"| {name} | {step} | {usual:.2f} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
