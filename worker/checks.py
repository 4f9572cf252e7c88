"""The application of the worker that checks uploads: ``bdlab worker checks``.

It is the training worker's, under a name of its own, so that a check never waits for a training to end. Every file is
looked at in a fresh process, which may break without harm.
"""

from worker.celery import app

__all__ = ["app"]
