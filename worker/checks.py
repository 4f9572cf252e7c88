"""The Celery application of the worker that checks uploads, ``bdlab worker checks``.

It is the same application as the training worker's, in a separate process so that a check never waits for training to
end. Every file is checked in a new child, which a malicious file may crash.
"""

from worker.celery import app

__all__ = ["app"]
