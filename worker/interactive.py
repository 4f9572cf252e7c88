"""The Celery application of the interactive worker. Torch and the dataset are loaded before the first request.

It computes on one thread: the requests are small, and the cores are left to training.
"""

import torch

from worker.celery import app, settings
from worker.lab import interactive

__all__ = ["app"]

torch.set_num_threads(1)
interactive.preview({"dataset": {"name": "digits"}, "attack": {"name": "badnets"}}, settings.datasets)
