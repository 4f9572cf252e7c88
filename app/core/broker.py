"""Messages to the workers. Tasks are sent by name: the control plane never imports the worker's code.

``bdlab.run_experiment(experiment_id)`` goes to the queue ``gpu`` or ``cpu``, ``bdlab.check_upload(upload_id)`` to the
queue ``checks``; they have no result. The two tasks on the queue ``interactive`` have one, a JSON object that contains
files as base64 text:

- ``bdlab.preview(payload)``, payload ``{"dataset", "attack", "seed"}`` -> ``{"picture": <PNG>}``
- ``bdlab.predict(payload)``, payload ``{"spec", "checkpoints": {arm: object key}, "detectors": {arm: object key},
  "trigger": object key, "index", "image", "triggered", "seed"}`` -> what `worker.lab.interactive.predict` returns

or ``{"error": <text>}`` if the request is not valid.
"""

from collections.abc import Callable
from typing import Any, TypeVar
from uuid import uuid4

from app.core import metrics, tracing
from app.core.tracing import current_request_id

INTERACTIVE, CHECKS = "interactive", "checks"
RUN_EXPERIMENT, PREVIEW, PREDICT = "bdlab.run_experiment", "bdlab.preview", "bdlab.predict"
CHECK_UPLOAD = "bdlab.check_upload"
RESULT_SECONDS = 60.0
SOCKET_SECONDS = 3.0

T = TypeVar("T")


class BrokerError(Exception):
    """The broker is unreachable or refuses messages."""


class Broker:
    """Sends tasks and fetches results; no call takes more than a few seconds."""

    def __init__(self, url: str) -> None:
        # Celery takes half a second to import, which not everybody who imports `app.main` needs.
        from celery import Celery  # noqa: PLC0415
        from kombu.exceptions import ChannelError, OperationalError  # noqa: PLC0415
        from redis.exceptions import RedisError  # noqa: PLC0415

        self._outages = (OperationalError, RedisError, OSError)
        self._missing_queue = ChannelError
        timeouts = {"socket_connect_timeout": SOCKET_SECONDS, "socket_timeout": SOCKET_SECONDS}
        # Two applications: one with a result back end would subscribe to the result of every task it sends, on a
        # connection that threads must not share. Results are polled instead.
        self._sender = Celery("bdlab", broker=url, set_as_current=False)
        self._sender.conf.update(
            broker_transport_options=timeouts | {"max_retries": 0},
            broker_connection_timeout=SOCKET_SECONDS,
        )
        self._results = Celery("bdlab-results", backend=url, set_as_current=False)
        self._results.conf.update(
            redis_socket_timeout=SOCKET_SECONDS,
            redis_socket_connect_timeout=SOCKET_SECONDS,
            result_backend_transport_options={"retry_policy": {"max_retries": 0, "timeout": SOCKET_SECONDS}},
        )

    def send_experiment(self, experiment_id: str, queue: str) -> None:
        """Tell the workers of a queue that an experiment is waiting. Raises BrokerError."""
        self._send(RUN_EXPERIMENT, experiment_id, queue)

    def send_check(self, upload_id: str) -> None:
        """Tell the workers that an upload needs its check. Raises BrokerError."""
        self._send(CHECK_UPLOAD, upload_id, CHECKS)

    def ask(self, task: str, payload: dict[str, Any], expires: float) -> str:
        """Send an interactive task that workers discard after ``expires`` seconds.

        Returns the id for `answer`. Raises BrokerError.
        """
        return self._send(task, payload, INTERACTIVE, expires=expires)

    def answer(self, task_id: str) -> dict[str, Any] | None:
        """The result of a task, or None until there is one.

        Raises BrokerError, or RuntimeError if the task failed.
        """
        meta = self._call(lambda: self._results.backend.get_task_meta(task_id, cache=False))
        if meta["status"] not in ("SUCCESS", "FAILURE", "REVOKED"):
            return None
        if meta["status"] != "SUCCESS":
            raise RuntimeError(f"the interactive worker failed: {meta['result']!r}")
        answer: dict[str, Any] = meta["result"]
        return answer

    def check(self) -> None:
        """Raise BrokerError if the broker accepts no messages, as when its memory or its disk is full."""

        def write() -> None:
            with self._sender.connection_for_write() as connection:
                connection.default_channel.client.set("bdlab-probe", "", ex=60)

        self._call(write)

    def pending(self, queue: str) -> int:
        """The number of messages in ``queue``. Raises BrokerError."""

        def count() -> int:
            with self._sender.connection_for_write() as connection:
                try:
                    return int(connection.default_channel.queue_declare(queue, passive=True).message_count)
                except self._missing_queue:  # an empty queue does not exist
                    return 0

        return self._call(count)

    def close(self) -> None:
        self._sender.close()
        self._results.close()

    def _send(self, task: str, argument: Any, queue: str, expires: float | None = None) -> str:
        task_id = str(uuid4())
        origin = {"request_id": current_request_id(), "traceparent": tracing.traceparent()}
        headers = {"origin": {name: value for name, value in origin.items() if value}}
        self._call(
            lambda: self._sender.send_task(
                task,
                args=[argument],
                queue=queue,
                task_id=task_id,
                expires=expires,
                retry=False,
                headers=headers,
            )
        )
        metrics.PUBLISHED.labels(queue).inc()
        return task_id

    def _call(self, operation: Callable[[], T]) -> T:
        try:
            return operation()
        except self._outages as error:
            raise BrokerError(f"broker: {error}") from error
