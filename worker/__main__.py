"""`bdlab worker`, or ``python -m worker``: one worker process, in the place of this one.

- ``training`` runs experiments. It serves the queue of its device: ``gpu`` where it sees a GPU, else ``cpu``.
- ``interactive`` answers previews and predictions.
- ``checks`` looks at what users send.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from app.core.broker import CHECKS, INTERACTIVE
from app.specs.placement import CPU, GPU, KINDS
from worker import device


class Kind(NamedTuple):
    """The module of a kind's Celery application, and what it needs on the command line."""

    module: str
    arguments: tuple[str, ...] = ()


TRAINING = "training"
WORKERS = {
    TRAINING: Kind("worker.celery"),
    INTERACTIVE: Kind("worker.interactive", ("--pool", "solo")),
    CHECKS: Kind("worker.checks"),
}
QUIET = ("--without-gossip", "--without-mingle", "--without-heartbeat")


def main(words: Sequence[str] | None = None) -> None:
    """Run until SIGTERM. A training worker hands its experiment back first."""
    parser = argparse.ArgumentParser(prog="bdlab worker", description="Start a worker.")
    parser.add_argument("kind", nargs="?", choices=list(WORKERS), default=TRAINING)
    parser.add_argument("--gpu", metavar="N", help="the GPU to use: its number or UUID; none: no GPU at all")
    parser.add_argument("--queue", choices=KINDS, help="default: gpu where there is one, else cpu")
    chosen = parser.parse_args(words)
    if chosen.gpu is not None:
        # Before anything looks for a GPU. The driver's tool counts them by their place on the bus.
        os.environ |= {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": "" if chosen.gpu == "none" else chosen.gpu,
        }
    found = device.find()
    if chosen.gpu not in (None, "none") and found.kind != GPU:
        _refuse(f"--gpu {chosen.gpu}: there is no such GPU; nvidia-smi lists them")
    if chosen.queue == GPU and found.kind != GPU:
        _refuse("--queue gpu: this worker sees no GPU")
    if chosen.kind == TRAINING:
        queue = chosen.queue or (GPU if found.kind == GPU else CPU)
    elif chosen.queue is not None:
        _refuse(f"--queue: a worker for {chosen.kind} has a queue of its own")
    else:
        queue = chosen.kind
    kind = WORKERS[chosen.kind]
    app = importlib.import_module(kind.module).app
    app.worker_main(["worker", *QUIET, "-Q", queue, *kind.arguments])


def _refuse(message: str) -> NoReturn:
    print(f"bdlab worker: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
