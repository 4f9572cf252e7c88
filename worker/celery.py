"""The Celery application of the workers.

Three kinds of worker, each with a queue and a process of its own:

- ``bdlab worker`` runs experiments, each in a new child. The parent never imports torch, because a process that has
  initialized CUDA cannot fork.
- ``bdlab worker checks`` checks uploads, each in a new child.
- ``bdlab worker interactive`` answers previews and predictions.

Messages are acknowledged before the task runs, because SQL, not the broker, records what is left to do. With late
acknowledgement a task that takes longer than the visibility timeout would run twice.
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
from app.settings import Settings, read_settings
from app.specs.placement import CPU
from worker import messages
from worker.housekeeping import EVERY_SECONDS, collect_fetched_datasets
from worker.registry import Registration
from worker.telemetry import WorkerTelemetry

REGISTRATION_SECONDS = 10.0
VISIBILITY_TIMEOUT_SECONDS = 10 * 365 * 86_400  # never redeliver
PROCESS_NAMES = {INTERACTIVE: "interactive", CHECKS: "checks"}


def make_app(settings: Settings) -> Celery:
    """The application, with the settings that the service's guarantees depend on."""
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
        # No limit besides `worker_disable_prefetch`: another one would count a message whose acknowledgment failed when
        # the broker died, and the worker would never ask for the next.
        worker_prefetch_multiplier=0,
        worker_concurrency=1,
        worker_max_tasks_per_child=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={"visibility_timeout": VISIBILITY_TIMEOUT_SECONDS},
    )
    return celery


def worker_name(pid: int, queues: Sequence[str]) -> str:
    """A worker's name: its host, its main process, its queues."""
    return f"{socket.gethostname()}:{pid}:{'+'.join(queues)}"


def served_queues(celery: Celery) -> tuple[str, ...]:
    """The queues of this worker; a child inherits them."""
    return tuple(sorted(celery.amqp.queues.consume_from))


messages.install()
PARENT_PID = os.getpid()
settings = read_settings()
app = make_app(settings)
_registrations: list[Registration] = []
telemetry = WorkerTelemetry(settings)


@signals.celeryd_init.connect
def _configure_logs(instance: Any, options: dict[str, Any], **_: Any) -> None:
    queues = options.get("queues") or []
    telemetry.process = PROCESS_NAMES.get(queues if isinstance(queues, str) else ",".join(queues), "worker")
    logs.configure(telemetry.process, settings)
    instance.quiet = True  # no banner


@signals.setup_logging.connect
def _replace_celery_logging(**_: Any) -> None:
    """A receiver of this signal keeps Celery from configuring logs itself."""
    get_logger()  # billiard's logger, which is set to not propagate when it is created, so before `configure`
    logs.configure(telemetry.process, settings)


@signals.worker_process_init.connect
def _start_telemetry(**_: Any) -> None:
    """Runs in the process that runs tasks: a child, or with the solo pool (interactive) this process."""
    telemetry.start()


@signals.task_postrun.connect
def _push_telemetry(**_: Any) -> None:
    telemetry.push()


@signals.worker_process_init.connect
def _die_with_parent(**_: Any) -> None:
    """A child that outlives its parent would run beside the child of the next parent."""
    if os.getpid() != PARENT_PID:
        die_with(PARENT_PID)


@signals.worker_ready.connect
def _register(sender: Any, **_: Any) -> None:
    # On the event loop's timer, not in a thread: a fork while a thread holds one of SQLite's mutexes would leave the
    # mutex locked in the child forever.
    queues = served_queues(sender.app)
    name = worker_name(os.getpid(), queues)
    registration = Registration(settings.database, name, queues, lambda: bool(active_requests))
    _registrations.append(registration)
    registration.renew()
    sender.timer.call_repeatedly(REGISTRATION_SECONDS, registration.renew)
    collect_fetched_datasets(settings)
    sender.timer.call_repeatedly(EVERY_SECONDS, lambda: collect_fetched_datasets(settings))


@signals.worker_shutting_down.connect
def _stop_children(**_: Any) -> None:
    """Requeue running experiments. By default Celery waits for tasks to end, which may take days."""
    for child in active_children():
        os.kill(child.pid, signal.SIGTERM)
    for registration in _registrations:
        registration.drain()


@signals.worker_shutdown.connect
def _remove_registration(**_: Any) -> None:
    for registration in _registrations:
        registration.remove()
