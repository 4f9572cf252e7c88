"""Images per second of training and evaluation on one CPU thread, by memory layout, precision and batch size.

``python benchmarks/layout.py``; two minutes. Prints the best of several rounds.
"""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from app.specs.facts import BUILT_IN
from app.specs.model import ModelSpec, SmallCnn, WideResNet16x1
from worker.lab.networks import Network, build_network

ROUNDS, SECONDS, BATCH = 3, 0.7, 128
CASES: tuple[tuple[str, ModelSpec], ...] = (
    ("digits", SmallCnn()),
    ("cifar10", SmallCnn()),
    ("cifar10", WideResNet16x1()),
)
LAYOUTS = {"plain": torch.contiguous_format, "channels-last": torch.channels_last}


def main() -> None:
    torch.set_num_threads(1)
    for dataset, spec in CASES:
        facts = BUILT_IN[dataset]
        images = torch.randint(256, (1024, facts.channels, facts.height, facts.width), dtype=torch.uint8)
        labels = torch.randint(facts.classes, (len(images),))
        network = build_network(spec, facts, 0)
        ways: dict[str, Callable[[], int]] = {}
        for name, layout in LAYOUTS.items():
            for bfloat16 in (False, True):
                kind = f"{name} {'bfloat16' if bfloat16 else 'float32'}"
                ways[f"training, {kind}"] = trains(network, images, labels, layout, bfloat16)
            for batch in (BATCH, len(images)):
                ways[f"evaluation, {name} float32, batches of {batch}"] = evaluates(
                    network, images, layout, batch
                )
        best = dict.fromkeys(ways, 0.0)
        for _ in range(ROUNDS):
            for way, work in ways.items():
                best[way] = max(best[way], rate(work))
        print(f"{spec.name}, {facts.height}x{facts.width}")
        for way, images_a_second in best.items():
            print(f"  {way:52} {images_a_second:10,.0f}")


def rate(work: Callable[[], int]) -> float:
    """Images per second."""
    work()
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        done += work()
    return done / (time.perf_counter() - start)


def trains(
    network: Network, images: torch.Tensor, labels: torch.Tensor, layout: torch.memory_format, bfloat16: bool
) -> Callable[[], int]:
    optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.9, nesterov=True)

    def step() -> int:
        network.train().to(memory_format=layout)  # type: ignore[call-overload]
        optimizer.zero_grad(set_to_none=True)
        x = images[:BATCH].to(torch.float32, memory_format=layout).div_(255)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = F.cross_entropy(network(x).float(), labels[:BATCH])
        loss.backward()
        optimizer.step()
        return BATCH

    return step


def evaluates(
    network: Network, images: torch.Tensor, layout: torch.memory_format, batch: int
) -> Callable[[], int]:
    def forward() -> int:
        network.eval().to(memory_format=layout)  # type: ignore[call-overload]
        with torch.inference_mode():
            for part in images.split(batch):
                network(part.to(torch.float32, memory_format=layout).div_(255))
        return len(images)

    return forward


if __name__ == "__main__":
    main()
