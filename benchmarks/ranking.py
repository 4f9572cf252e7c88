"""Time to rank 50,000 samples for isolation, compared with one forward pass over them.

python benchmarks/ranking.py
"""

import time

import torch

from app.specs.facts import BUILT_IN
from app.specs.model import SmallCnn
from worker.lab.compute import choose_compute
from worker.lab.defenses.abl import lowest_ranked, smoothed_ranks
from worker.lab.evaluation import sample_losses
from worker.lab.networks import build_network

SAMPLES, SINGLES, BATCH = 50_000, 500, 1024


def main() -> None:
    facts, compute = BUILT_IN["cifar10"], choose_compute("cpu", "float32", compile=False)
    network = build_network(SmallCnn(), facts, 0).eval()
    drawn = torch.Generator().manual_seed(0)
    images = torch.randint(256, (SAMPLES, 3, 32, 32), generator=drawn, dtype=torch.uint8)
    labels = torch.randint(10, (SAMPLES,), generator=drawn)
    sample_losses(network, images[:2048], labels[:2048], compute)

    start = time.perf_counter()
    with torch.inference_mode():
        for batch in images.split(BATCH):
            network(batch.float().div_(255))
    forward = time.perf_counter() - start

    start = time.perf_counter()
    losses = sample_losses(network, images, labels, compute)
    lowest_ranked(smoothed_ranks([losses] * 12), 0.01)
    ranking = time.perf_counter() - start

    start = time.perf_counter()
    with torch.inference_mode():
        for image in images[:SINGLES].split(1):
            network(image.float().div_(255))
    singles = (time.perf_counter() - start) * SAMPLES / SINGLES

    print(f"one forward pass over {SAMPLES} images, batches of {BATCH}: {forward:.2f} s")
    print(
        f"losses, ranks over a window of 12, and selection:       {ranking:.2f} s ({ranking / forward:.2f} x)"
    )
    print(
        f"forward passes of single images (from {SINGLES}):           {singles:.2f} s ({singles / forward:.1f} x)"
    )


if __name__ == "__main__":
    main()
