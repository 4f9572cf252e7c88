"""Whether anybody works: workers by queue, their versions and clocks, and the relay."""

from collections.abc import Iterator
from datetime import timedelta

from sqlalchemy import func, select

from app.core.broker import CHECKS, INTERACTIVE
from app.core.database import utcnow
from app.data.catalog.missing_plugins import missing_plugins
from app.experiments.workers.repository import ALIVE_SECONDS
from app.experiments.workers.service import skew
from app.operations.doctor.databases import clock
from app.operations.doctor.findings import Finding, Patient, error, ok, warning
from app.specs.placement import KINDS
from app.specs.plugins import VARIABLE
from app.tables.experiments import QUEUED, RUNNING, Experiment, Outbox, WorkerHeartbeat

AHEAD = timedelta(seconds=2)
COMMANDS = {
    KINDS: "bdlab worker",
    (INTERACTIVE,): "bdlab worker interactive",
    (CHECKS,): "bdlab worker checks",
}


def workers(patient: Patient) -> Iterator[Finding]:
    """A live worker on each queue."""
    if patient.database is None:
        return
    now = utcnow()
    with patient.database.reading() as session:
        rows = session.scalars(select(WorkerHeartbeat).order_by(WorkerHeartbeat.name)).all()
    alive = [row for row in rows if row.seen_at >= now - timedelta(seconds=ALIVE_SECONDS)]
    if not alive and not patient.up and not patient.settings.broker_url:
        yield warning("workers", "none: the service does not run", "bdlab up")
        return
    for queues, command in COMMANDS.items():
        found = [f"{row.name} ({row.device})" for row in alive if set(queues) & set(row.queue.split(","))]
        queue = " or ".join(queues)
        if found:
            yield ok("workers", f"{queue}: {'; '.join(found)}")
        else:
            yield error(
                "workers", f"none on the queue {queue!r} in the last {ALIVE_SECONDS:g} s", f"start {command}"
            )
    for text in skew(alive):
        yield warning("workers", text, "start it anew with the code of this machine")
    ahead = max(alive, key=lambda row: row.seen_at, default=None)
    if ahead is not None and ahead.seen_at > now + AHEAD:
        yield clock(f"worker {ahead.name}", ahead.seen_at)


def plug_ins(patient: Patient) -> Iterator[Finding]:
    """Whether every attack and defense of a stored experiment is defined."""
    if patient.database is None:
        return
    if missing := missing_plugins(patient.database):
        yield warning(
            "plug-ins",
            f"nothing defines {', '.join(missing)}; their experiments can only be read",
            f"set {VARIABLE}",
        )
    else:
        yield ok("plug-ins", "stored experiments need none that is missing")


def relay(patient: Patient) -> Iterator[Finding]:
    """Work that should have been handed out, or taken from a dead worker, by now."""
    if patient.database is None:
        return
    settings, now = patient.settings, utcnow()
    patience = max(30.0, 10 * settings.relay_seconds)
    since = now - timedelta(seconds=patience)
    with patient.database.reading() as session:
        unsent = session.scalar(
            select(func.count())
            .select_from(Outbox)
            .join(Experiment, Experiment.id == Outbox.experiment_id)
            .where(Outbox.published_at.is_(None), Outbox.not_before < since, Experiment.status == QUEUED)
        )
        expired = session.scalar(
            select(func.count())
            .select_from(Experiment)
            .where(Experiment.status == RUNNING, Experiment.lease_expires_at < since)
        )
    mend = "start it: python -m app.operations.relay; if it runs, see its log"
    if expired:
        yield error(
            "relay", f"{expired} leases ran out more than {patience:.0f} s ago; it does not run", mend
        )
    elif unsent:
        held = "it does not run, or a limit on running experiments holds them back"
        yield warning("relay", f"{unsent} messages are due for more than {patience:.0f} s: {held}", mend)
    else:
        yield ok("relay", "no message and no lease is overdue")
