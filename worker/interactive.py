"""The Celery application of the interactive worker.

It computes on one thread: the requests are small, and the cores are left to training. Torch, which takes 300 MB, is
imported by the first request.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported

from worker.celery import app  # after the setting

__all__ = ["app"]
