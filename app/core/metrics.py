"""The metrics of a process; `app.operations.health.shared_counters` carries those of relay and workers to the API."""

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]  # twice as many series for nothing
REGISTRY = CollectorRegistry()
API_REGISTRY = CollectorRegistry()
"""What only an API process has, and keeps to itself."""
QUICK = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
SLOW = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0)


def _counter(name: str, documentation: str, *labels: str) -> Counter:
    return Counter(name, documentation, labels, registry=REGISTRY)


REQUEST_SECONDS = Histogram(
    "bdlab_request_seconds",
    "Time from a request to the end of its answer.",
    ("method", "route", "status"),
    buckets=(0.002, *SLOW),
    registry=API_REGISTRY,
)
DATABASE_SECONDS = Histogram(
    "bdlab_database_seconds", "Time of SQL statements by kind.", ("kind",), buckets=QUICK, registry=REGISTRY
)
DATABASE_ERRORS = _counter("bdlab_database_errors_total", "Errors of the database by class.", "error")
OBJECTS_SECONDS = Histogram(
    "bdlab_objects_seconds",
    "Time of the object store's operations.",
    ("operation",),
    buckets=SLOW,
    registry=REGISTRY,
)
OBJECTS_ERRORS = _counter("bdlab_objects_errors_total", "Failed operations of the object store.", "operation")
PUBLISHED = _counter("bdlab_messages_published_total", "Messages published to the broker.", "queue")
ATTEMPTS = _counter("bdlab_attempts_total", "Ended attempts at experiments, by outcome.", "outcome")
ENDED = _counter("bdlab_experiments_ended_total", "Ended experiments, by status.", "status")
LEASES_LOST = _counter("bdlab_leases_lost_total", "Leases that expired and were revoked.")
CHECKS = _counter("bdlab_checks_total", "Ended checks of uploads, by result.", "status")
DELIVERIES = _counter("bdlab_webhook_tries_total", "Requests to webhooks, by outcome.", "outcome")
BUSY_SECONDS = _counter(
    "bdlab_worker_busy_seconds_total", "Time that workers spent on experiments.", "queue", "device"
)
EPOCHS = _counter("bdlab_epochs_total", "Trained epochs, by kind of stage.", "stage")
STAGES = _counter("bdlab_stages_total", "Stages by source: computed, or from the cache.", "stage", "source")
STAGES_BUSY = _counter(
    "bdlab_stages_busy_total", "How often a needed stage was being computed by another worker.", "stage"
)
