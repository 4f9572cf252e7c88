"""The statuses of an experiment."""

from typing import Literal, get_args

Status = Literal["queued", "running", "succeeded", "failed", "canceled"]
STATUSES: tuple[str, ...] = get_args(Status)
TERMINAL = ("succeeded", "failed", "canceled")
"""Statuses in which nothing more happens, unless the experiment is retried."""
