"""The interactive worker's application: everything heavy is loaded before the first question comes.

It computes on one thread: its questions are small, and a training may have all the cores.
"""

import torch

from worker.celery import app, settings
from worker.lab import interactive

__all__ = ["app"]

torch.set_num_threads(1)
interactive.preview({"dataset": {"name": "digits"}, "attack": {"name": "badnets"}}, settings.datasets)
