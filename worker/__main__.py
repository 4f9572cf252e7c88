"""`bdlab worker`, or ``python -m worker``: runs one worker until SIGTERM.

- ``training`` runs experiments. It serves the queue of its device: ``gpu`` if a GPU is visible, else ``cpu``.
- ``interactive`` answers previews and predictions.
- ``checks`` checks uploads.
"""

import argparse
import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from app.core.broker import CHECKS, INTERACTIVE
from app.core.security import keep_files_private
from app.specs.model import plugin_architectures
from app.specs.placement import CPU, GPU, KINDS
from worker.device import find_device


class Kind(NamedTuple):
    """The module of the Celery application, and the pool that runs its tasks."""

    module: str
    pool: str = "prefork"


TRAINING = "training"
WORKERS = {
    TRAINING: Kind("worker.celery"),
    INTERACTIVE: Kind("worker.interactive", "solo"),
    CHECKS: Kind("worker.checks"),
}


def main(arguments: Sequence[str] | None = None) -> int | None:
    """Run until SIGTERM, on which a training worker requeues its experiment. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="bdlab worker", description="Start a worker.")
    parser.add_argument("kind", nargs="?", choices=list(WORKERS), default=TRAINING)
    parser.add_argument("--gpu", metavar="N", help="number or UUID of the GPU to use; none: use no GPU")
    parser.add_argument("--queue", choices=KINDS, help="default: gpu if one is visible, else cpu")
    options = parser.parse_args(arguments)
    keep_files_private()
    if options.gpu is not None:
        # Set before any library initializes CUDA. nvidia-smi numbers GPUs in the order of the PCI bus.
        os.environ |= {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": "" if options.gpu == "none" else options.gpu,
        }
    visible = find_device()
    if options.gpu not in (None, "none") and visible.kind != GPU:
        _refuse(f"--gpu {options.gpu}: there is no such GPU; nvidia-smi lists them")
    if options.queue == GPU and visible.kind != GPU:
        _refuse("--queue gpu: this worker sees no GPU")
    if options.kind == TRAINING:
        queue = options.queue or (GPU if visible.kind == GPU else CPU)
    elif options.queue is not None:
        _refuse(f"--queue is only for training workers, not for {options.kind}")
    else:
        queue = options.kind
    if options.kind == TRAINING:
        refuse_faulty_architectures()
    kind = WORKERS[options.kind]
    # Not through Celery's command line, whose libraries for interactive use would stay in memory.
    worker = importlib.import_module(kind.module).app.Worker(
        queues=[queue], pool=kind.pool, without_gossip=True, without_mingle=True, without_heartbeat=True
    )
    worker.start()
    exit_code: int | None = worker.exitcode
    return exit_code


def refuse_faulty_architectures() -> None:
    """End the process with one line for each architecture of a plug-in that cannot be built or traced."""
    if not plugin_architectures():
        return
    # In a process of its own: this one must not import torch, since its children are forks of it.
    command = [sys.executable, "-c", "from worker.lab.networks.plugin import main; main()"]
    tried = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if tried.returncode:
        _refuse(tried.stderr.strip() or f"trying the plug-ins ended with status {tried.returncode}")


def _refuse(message: str) -> NoReturn:
    print(f"bdlab worker: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    sys.exit(main())
