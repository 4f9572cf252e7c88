"""The Celery application of the workers.

Three kinds of worker, each with a queue and a process of its own:

- ``bdlab worker`` trains. Its parent imports no torch, because a process that has touched CUDA cannot fork; every
  experiment gets a fresh child.
- ``bdlab worker checks`` checks what users send, each file in a fresh child.
- ``bdlab worker interactive`` answers previews and predictions.

A message is acknowledged as soon as a worker has it: SQL, not the broker, knows what is still to be done. With
late acknowledgement Celery would run a task twice that takes longer than the visibility timeout.
"""

import os
import signal
import socket
from collections.abc import Sequence
from typing import Any

from billiard.process import active_children  # type: ignore[import-untyped]
from billiard.util import get_logger  # type: ignore[import-untyped]
from celery import Celery, signals
from celery.worker.state import active_requests

from app.core import logs
from app.core.broker import (
    CHECK_UPLOAD,
    CHECKS,
    INTERACTIVE,
    PREDICT,
    PREVIEW,
    RESULT_SECONDS,
    RUN_EXPERIMENT,
)
from app.operations.child_process import die_with
from app.settings import Settings
from app.specs.placement import CPU
from worker.housekeeping import EVERY_SECONDS, tidy_up
from worker.registry import Registration
from worker.watch import Sight

SIGN_OF_LIFE_SECONDS = 10.0
NEVER_REDELIVERED_SECONDS = 10 * 365 * 86_400
NAMES = {INTERACTIVE: "interactive", CHECKS: "checks"}


def make_app(settings: Settings) -> Celery:
    """The application with every setting that the runtime's guarantees rest on."""
    celery = Celery("bdlab", broker=settings.broker, backend=settings.broker, include=["worker.tasks"])
    celery.conf.update(
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        task_routes={
            RUN_EXPERIMENT: {"queue": CPU},
            CHECK_UPLOAD: {"queue": CHECKS},
            PREVIEW: {"queue": INTERACTIVE},
            PREDICT: {"queue": INTERACTIVE},
        },
        task_ignore_result=True,
        result_expires=RESULT_SECONDS,
        task_acks_late=False,
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        worker_concurrency=1,
        worker_max_tasks_per_child=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={"visibility_timeout": NEVER_REDELIVERED_SECONDS},
    )
    return celery


def worker_name(pid: int, queues: Sequence[str]) -> str:
    """A worker's name: its host, its main process, its queues."""
    return f"{socket.gethostname()}:{pid}:{'+'.join(queues)}"


def served(celery: Celery) -> tuple[str, ...]:
    """The queues of this worker; a child has them from its parent."""
    return tuple(sorted(celery.amqp.queues.consume_from))


PARENT = os.getpid()
settings = Settings()
app = make_app(settings)
_registration: list[Registration] = []
sight = Sight(settings)


@signals.celeryd_init.connect
def _log_in_our_way(instance: Any, options: dict[str, Any], **_: Any) -> None:
    queues = options.get("queues") or []
    sight.process = NAMES.get(queues if isinstance(queues, str) else ",".join(queues), "worker")
    logs.configure(sight.process, settings)
    instance.quiet = True  # no banner among the lines


@signals.setup_logging.connect
def _no_other_way(**_: Any) -> None:
    """Celery sets up logs of its own unless somebody listens."""
    get_logger()  # of those who watch over the children; it takes its messages for itself when it is made
    logs.configure(sight.process, settings)


@signals.worker_process_init.connect
def _watch(**_: Any) -> None:
    """In the process that works, which is a fork of this one or (interactive) this one itself."""
    sight.begin()


@signals.task_postrun.connect
def _tell(**_: Any) -> None:
    sight.tell()


@signals.worker_process_init.connect
def _stay_with_the_parent(**_: Any) -> None:
    """A child that outlived its parent would train beside the one that the next parent starts."""
    if os.getpid() != PARENT:
        die_with(PARENT)


@signals.worker_ready.connect
def _register(sender: Any, **_: Any) -> None:
    # On the event loop's timer and not in a thread: a fork while a thread holds one of SQLite's locks would
    # leave the child with a lock that nobody opens.
    queues = served(sender.app)
    name = worker_name(os.getpid(), queues)
    registration = Registration(settings.database, name, queues, lambda: bool(active_requests))
    _registration.append(registration)
    registration.renew()
    sender.timer.call_repeatedly(SIGN_OF_LIFE_SECONDS, registration.renew)
    tidy_up(settings)
    sender.timer.call_repeatedly(EVERY_SECONDS, lambda: tidy_up(settings))


@signals.worker_shutting_down.connect
def _hand_back(**_: Any) -> None:
    """Without this, shutting down would wait for a training to end, which may take days."""
    for child in active_children():
        os.kill(child.pid, signal.SIGTERM)
    for registration in _registration:
        registration.drain()


@signals.worker_shutdown.connect
def _sign_off(**_: Any) -> None:
    for registration in _registration:
        registration.remove()
