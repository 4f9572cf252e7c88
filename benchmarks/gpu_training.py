"""Images per second of training and evaluation on a GPU, by batch size, with and without torch.compile.

``python benchmarks/gpu_training.py [network ...]`` (default: resnet18); a minute per network. Requires a GPU and only
the lab. The images are random, in CIFAR-10's shape. `launched` launches kernels one by one; the others replay a graph.
"""

import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import TypeAdapter

from app.specs.experiment import ExperimentSpec
from app.specs.facts import BUILT_IN
from app.specs.model import ModelSpec
from app.specs.stages import plan
from worker.lab import graphs
from worker.lab.compute import Compute, choose_compute
from worker.lab.data.augment import Augment
from worker.lab.evaluation import predict_logits
from worker.lab.local import FolderRecorder, FolderStore
from worker.lab.networks import Network, build_network
from worker.lab.stages import Progress, StageRun
from worker.lab.training import Recipe, train

IMAGES = 16 * 1024
AUGMENT = Augment(crop_padding=4, flip=True)


def main(names: list[str]) -> None:
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    for name in names:
        for row in measure(name):
            print(*row, sep=", ", flush=True)


def measure(name: str, kind: str = "cuda", count: int = IMAGES) -> Iterator[tuple[str, str, str, str]]:
    """Network, what, images per second, and remarks, of each way to train and of evaluation, on ``count`` images."""
    auto = choose_compute(kind, "auto", False, BUILT_IN["cifar10"].shape)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, device=auto.device)
    labels = torch.randint(10, (count,), device=auto.device)
    ways = [
        ("bfloat16", auto, 128),
        ("bfloat16, launched", auto, 128),
        ("bfloat16", auto, 256),
        ("bfloat16, launched", auto, 256),
        ("bfloat16", auto, 512),
        ("bfloat16, compiled", replace(auto, compile=True), 128),
        ("float32", replace(auto, bfloat16=False), 128),
    ]
    spec: ModelSpec = TypeAdapter(ModelSpec).validate_python({"name": name})
    worth_it = graphs.MIN_BATCHES
    for title, compute, size in ways if kind == "cuda" else ways[-1:]:
        graphs.MIN_BATCHES = 10**9 if "launched" in title else worth_it
        network = build_network(spec, BUILT_IN["cifar10"], 0)
        network.calibrate(images.cpu())
        network.to(auto.device)
        first, rest = epochs(network, images, labels, compute, size)
        seconds = f"first epoch {first:.1f} s, others {rest:.2f} s"
        yield name, f"training, {title}, batches of {size}", f"{count / rest:,.0f}", seconds
    graphs.MIN_BATCHES = worth_it
    predict_logits(network, images, auto).sum().item()
    start = time.perf_counter()
    predict_logits(network, images, auto).sum().item()  # the sum waits for the device
    yield name, "evaluation", f"{count / (time.perf_counter() - start):,.0f}", ""


def epochs(
    network: Network, images: torch.Tensor, labels: torch.Tensor, compute: Compute, size: int
) -> tuple[float, float]:
    """Seconds of the first epoch, including compilation, and of the fastest of three others."""
    ends = [time.perf_counter()]

    def after(network: object, epoch: int) -> None:
        if compute.device.type == "cuda":
            torch.cuda.synchronize()
        ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        recorder = FolderRecorder(Path(folder))
        stage = next(stage for stage in plan(ExperimentSpec(), "") if stage.kind == "victim")
        run = StageRun(
            stage, recorder, FolderStore(Path(folder) / "stages"), compute, Progress(4), 1e9, first_step=0
        )
        recipe = Recipe(4, size, 0.01, 0.9, 5e-4, augment=AUGMENT)
        train(run, network, images, labels, recipe, after_epoch=after)
        recorder.close()
    times = [b - a for a, b in itertools.pairwise(ends)]
    return times[0], min(times[1:])


if __name__ == "__main__":
    main(sys.argv[1:] or ["resnet18"])
