"""The metrics of the API process, and those that it reads from database and broker, for Prometheus."""

from collections.abc import Iterator

from prometheus_client import PROCESS_COLLECTOR, CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from app.core.broker import CHECKS, INTERACTIVE, BrokerError
from app.core.context import Context
from app.core.metrics import API_REGISTRY
from app.operations.health.backlog import measure_backlog
from app.operations.health.shared_counters import collect_families
from app.specs.placement import KINDS


def render(context: Context, version: str) -> bytes:
    """All metrics in Prometheus' text format."""
    state = CollectorRegistry()
    state.register(PROCESS_COLLECTOR)
    state.register(_StateCollector(context, version))
    return generate_latest(API_REGISTRY) + generate_latest(state)


class _StateCollector(Collector):
    """The current state according to database and broker."""

    def __init__(self, context: Context, version: str) -> None:
        self._context = context
        self._version = version

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("bdlab_build", "The running version.", {"version": self._version})
        try:
            metrics = [*self._read_counters(), *self._read_backlog()]
        except SQLAlchemyError:
            metrics = []
        yield _gauge("bdlab_database_up", "1 if the database answers.", float(bool(metrics)))
        yield from metrics
        try:
            metrics = [self._count_messages()]
        except BrokerError:
            metrics = []
        yield _gauge("bdlab_broker_up", "1 if the broker answers.", float(bool(metrics)))
        yield from metrics

    def _read_counters(self) -> Iterator[Metric]:
        with self._context.database.whole.reading() as session:
            yield from collect_families(session, "api")

    def _read_backlog(self) -> Iterator[Metric]:
        with self._context.database.whole.reading() as session:
            backlog = measure_backlog(session, gpu_on_demand=self._context.settings.gpu_on_demand)
        yield _gauge("bdlab_experiments", "Unfinished experiments by status.", status=backlog.experiments)
        yield _gauge("bdlab_queue_waiting", "Work that waits for a worker, by queue.", queue=backlog.waiting)
        yield _gauge("bdlab_queue_running", "Work in progress, by queue.", queue=backlog.running)
        yield _gauge(
            "bdlab_queue_age_seconds", "Age of the oldest waiting work, by queue.", queue=backlog.ages
        )
        yield _gauge("bdlab_uploads_pending", "Uploads that wait for their check.", backlog.uploads)
        yield _gauge("bdlab_leases_expired", "Running experiments with an expired lease.", backlog.expired)
        yield _gauge("bdlab_outbox_messages", "Unsent messages in SQL, by state.", state=backlog.outbox)
        yield _gauge("bdlab_outbox_lag_seconds", "How long the oldest due message waits.", backlog.lag)
        family = GaugeMetricFamily(
            "bdlab_workers", "Live workers by queue and device.", labels=["queue", "device"]
        )
        for (queue, device), count in backlog.workers.items():
            family.add_metric([queue, device], count)
        yield family

    def _count_messages(self) -> Metric:
        queues = (*KINDS, INTERACTIVE, CHECKS)
        pending = {queue: float(self._context.broker.pending(queue)) for queue in queues}
        return _gauge(
            "bdlab_queue_messages", "Messages not yet received by a worker, by queue.", queue=pending
        )


def _gauge(name: str, documentation: str, value: float | None = None, **labeled: dict[str, float]) -> Metric:
    """A gauge with one ``value``, or with one for each value of a label."""
    family = GaugeMetricFamily(name, documentation, labels=list(labeled))
    for values in labeled.values():
        for label, number in values.items():
            family.add_metric([label], number)
    if value is not None:
        family.add_metric([], value)
    return family
