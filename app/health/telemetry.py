"""Numbers for Prometheus."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from app.core.context import Context
from app.core.database import utcnow
from app.experiments.tables import CANCELED, FAILED, QUEUED, RUNNING, SUCCEEDED, Experiment
from app.health.service import live_workers

BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0)


class Telemetry:
    """One registry for each application, so that several can live in one process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
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
        state.register(_State(context))
        return generate_latest(self._registry) + generate_latest(state)


class _State(Collector):
    """What the database says at this moment."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def collect(self) -> Iterator[GaugeMetricFamily]:
        up = GaugeMetricFamily("bdlab_database_up", "1 if the database answers.")
        try:
            families = list(self._families())
        except SQLAlchemyError:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield from families

    def _families(self) -> Iterator[GaugeMetricFamily]:
        with self._context.database.whole.reading() as session:
            counts = dict.fromkeys((QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELED), 0)
            query = select(Experiment.status, func.count()).group_by(Experiment.status)
            counts |= dict(session.execute(query).all())
            oldest = session.scalar(
                select(Experiment.queued_at)
                .where(Experiment.status == QUEUED)
                .order_by(Experiment.queued_at)
                .limit(1)
            )
        experiments = GaugeMetricFamily("bdlab_experiments", "Experiments by status.", labels=["status"])
        for status, count in counts.items():
            experiments.add_metric([status], count)
        yield experiments
        age = GaugeMetricFamily(
            "bdlab_queue_age_seconds", "How long the oldest queued experiment has waited."
        )
        age.add_metric([], (utcnow() - oldest).total_seconds() if oldest else 0)
        yield age
        workers = GaugeMetricFamily("bdlab_workers", "Live workers by queue.", labels=["queue"])
        for queue, names in live_workers(self._context).items():
            workers.add_metric([queue], len(names))
        yield workers
