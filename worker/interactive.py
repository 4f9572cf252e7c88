"""The interactive worker's application: torch and the lab are loaded before the first question comes.

It computes on one thread: its questions are small, and a training may have all the cores.
"""

import torch

import worker.lab.interactive  # noqa: F401  # for its effect: everything heavy is loaded
from worker.celery import app

__all__ = ["app"]

torch.set_num_threads(1)
