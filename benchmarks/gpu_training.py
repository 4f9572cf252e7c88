"""Images per second of training and evaluation on a GPU, by batch size, with and without torch.compile.

``python benchmarks/gpu_training.py [network ...]`` (default: resnet18); a minute per network. Requires a GPU and only
the lab. The images are random, in CIFAR-10's shape. `launched` launches kernels one by one; the others replay a graph.
"""

import itertools
import sys
import tempfile
import time
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
    facts = BUILT_IN["cifar10"]
    auto = choose_compute("cuda", "auto", False)
    device = auto.device
    images = torch.randint(256, (IMAGES, 3, 32, 32), dtype=torch.uint8, device=device)
    labels = torch.randint(10, (IMAGES,), device=device)
    print(torch.cuda.get_device_name(device), "torch", torch.__version__)
    for name in names:
        spec: ModelSpec = TypeAdapter(ModelSpec).validate_python({"name": name})
        worth_it = graphs.MIN_BATCHES
        for title, compute, size in (
            ("bfloat16", auto, 128),
            ("bfloat16, launched", auto, 128),
            ("bfloat16", auto, 256),
            ("bfloat16, launched", auto, 256),
            ("bfloat16", auto, 512),
            ("bfloat16, compiled", replace(auto, compile=True), 128),
            ("float32", replace(auto, bfloat16=False), 128),
        ):
            graphs.MIN_BATCHES = 10**9 if "launched" in title else worth_it
            network = build_network(spec, facts, 0)
            network.calibrate(images.cpu())
            network.to(device)
            first, rest = epochs(network, images, labels, compute, size)
            print(
                f"{name}, training, {title}, batch {size}: {IMAGES / rest:,.0f} images per second; "
                f"first epoch {first:.1f} s, others {rest:.2f} s",
                flush=True,
            )
        predict_logits(network, images, auto)
        torch.cuda.synchronize()
        start = time.perf_counter()
        predict_logits(network, images, auto).sum().item()
        print(
            f"{name}, evaluation, bfloat16: {IMAGES / (time.perf_counter() - start):,.0f} images per second"
        )


def epochs(
    network: Network, images: torch.Tensor, labels: torch.Tensor, compute: Compute, size: int
) -> tuple[float, float]:
    """Seconds of the first epoch, including compilation, and of the fastest of three others."""
    ends = [time.perf_counter()]

    def after(network: object, epoch: int) -> None:
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
