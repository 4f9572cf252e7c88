"""Numbers for Prometheus."""

from collections.abc import Iterator

from prometheus_client import PROCESS_COLLECTOR, CollectorRegistry, Histogram, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from app.core.broker import CHECKS, INTERACTIVE, BrokerError
from app.core.context import Context
from app.core.metrics import SLOW
from app.operations.health import backlog
from app.operations.health.shared_counters import families
from app.specs.placement import KINDS

BUCKETS = (0.002, *SLOW)


class Telemetry:
    """One registry for each application, so that several can live in one process."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._registry = CollectorRegistry()
        self._registry.register(PROCESS_COLLECTOR)
        self._latency = Histogram(
            "bdlab_request_seconds",
            "Time from a request to the end of its answer.",
            ("method", "route", "status"),
            buckets=BUCKETS,
            registry=self._registry,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request. ``route`` is the template, so that ids do not multiply the series."""
        self._latency.labels(method, route, str(status)).observe(seconds)

    def render(self, context: Context) -> bytes:
        """Everything, in Prometheus' text format."""
        state = CollectorRegistry()
        state.register(_State(context, self._version))
        return generate_latest(self._registry) + generate_latest(state)


class _State(Collector):
    """What the database and the broker say at this moment."""

    def __init__(self, context: Context, version: str) -> None:
        self._context = context
        self._version = version

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("bdlab_build", "The version that answers.", {"version": self._version})
        try:
            found = [*self._counted(), *self._waiting()]
        except SQLAlchemyError:
            found = []
        yield _gauge("bdlab_database_up", "1 if the database answers.", float(bool(found)))
        yield from found
        try:
            found = [self._messages()]
        except BrokerError:
            found = []
        yield _gauge("bdlab_broker_up", "1 if the broker answers.", float(bool(found)))
        yield from found

    def _counted(self) -> Iterator[Metric]:
        with self._context.database.whole.reading() as session:
            yield from families(session, "api")

    def _waiting(self) -> Iterator[Metric]:
        with self._context.database.whole.reading() as session:
            found = backlog.look(session, gpu_on_demand=self._context.settings.gpu_on_demand)
        yield _gauge(
            "bdlab_experiments", "Experiments that have not ended, by status.", status=found.experiments
        )
        yield _gauge("bdlab_queue_waiting", "What waits for a worker, by queue.", queue=found.waiting)
        yield _gauge("bdlab_queue_running", "What workers are at, by queue.", queue=found.running)
        yield _gauge("bdlab_queue_age_seconds", "How long the oldest one waits, by queue.", queue=found.ages)
        yield _gauge("bdlab_uploads_pending", "Uploads that wait for their check.", found.uploads)
        yield _gauge("bdlab_leases_expired", "Running experiments whose worker is silent.", found.expired)
        yield _gauge(
            "bdlab_outbox_messages", "Messages in SQL that were not sent, by state.", state=found.outbox
        )
        yield _gauge("bdlab_outbox_lag_seconds", "How long the oldest due message waits.", found.lag)
        family = GaugeMetricFamily(
            "bdlab_workers", "Live workers by queue and device.", labels=["queue", "device"]
        )
        for (queue, device), count in found.workers.items():
            family.add_metric([queue, device], count)
        yield family

    def _messages(self) -> Metric:
        queues = (*KINDS, INTERACTIVE, CHECKS)
        waiting = {queue: float(self._context.broker.pending(queue)) for queue in queues}
        return _gauge("bdlab_queue_messages", "Messages that no worker has taken, by queue.", queue=waiting)


def _gauge(name: str, documentation: str, value: float | None = None, **labeled: dict[str, float]) -> Metric:
    """A gauge with one ``value``, or one for each value of a label."""
    family = GaugeMetricFamily(name, documentation, labels=list(labeled))
    for values in labeled.values():
        for label, number in values.items():
            family.add_metric([label], number)
    if value is not None:
        family.add_metric([], value)
    return family
