"""How much work waits, for how long, and which workers are alive. The cost does not grow with ended experiments."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.core.broker import CHECKS, INTERACTIVE
from app.core.database import database_now
from app.experiments.workers import repository as workers
from app.specs.placement import KINDS
from app.tables.experiments import QUEUED, RUNNING, Experiment, Outbox


@dataclass(frozen=True)
class Backlog:
    """Counts, and ages in seconds, 0 if nothing waits."""

    experiments: dict[str, float]
    """By status."""
    waiting: dict[str, float]
    running: dict[str, float]
    ages: dict[str, float]
    """By queue; the age of the oldest waiting item."""
    outbox: dict[str, float]
    """Unsent messages: ``due`` and ``later``."""
    lag: float
    expired: float
    uploads: float
    workers: Counter[tuple[str, str]]
    """Live workers by queue and device; 0 for a queue without any."""


def measure_backlog(session: Session, *, gpu_on_demand: bool) -> Backlog:
    """The current backlog of all owners."""
    now = database_now(session)

    def age(since: datetime | None) -> float:
        return max(0.0, (now - since).total_seconds()) if since is not None else 0.0

    experiments = workers.experiment_queues(session, gpu_on_demand=gpu_on_demand)
    checks = workers.check_queue(session)
    queues = experiments | {CHECKS: checks}
    unsent = select(func.count(), func.min(Outbox.not_before)).where(Outbox.published_at.is_(None))
    due, oldest_due = session.execute(unsent.where(Outbox.not_before <= now)).one()
    later, _ = session.execute(unsent.where(Outbox.not_before > now)).one()
    lost = select(func.count()).where(Experiment.status == RUNNING, Experiment.lease_expires_at < now)
    running = session.scalar(select(func.count()).where(Experiment.status == RUNNING)) or 0
    alive = Counter((queue, row.device) for row in workers.alive(session) for queue in row.queue.split(","))
    missing = {*KINDS, INTERACTIVE, CHECKS} - {queue for queue, _ in alive}
    alive.update({(queue, ""): 0 for queue in sorted(missing)})
    return Backlog(
        experiments={
            QUEUED: sum(length.waiting for length in experiments.values()),
            RUNNING: running,
        },
        waiting={queue: length.waiting for queue, length in queues.items()},
        running={queue: length.running or 0 for queue, length in queues.items()},
        ages={queue: age(length.oldest) for queue, length in queues.items()},
        outbox={"due": due, "later": later},
        lag=age(oldest_due),
        expired=session.scalar(lost) or 0,
        uploads=checks.waiting,
        workers=alive,
    )
