"""Workers and relay: whether they run and keep up; and whether anybody has a key to use them."""

from collections.abc import Iterator
from datetime import timedelta

from sqlalchemy import func, select

from app.core.broker import CHECKS, INTERACTIVE
from app.core.database import from_now, utcnow
from app.core.security import ADMIN
from app.data.catalog.missing_plugins import missing_plugins
from app.experiments.workers import repository
from app.experiments.workers.service import skew
from app.operations.doctor.findings import Finding, Installation, error, ok, warning
from app.specs.placement import KINDS
from app.specs.plugins import VARIABLE
from app.tables.experiments import QUEUED, RUNNING, Experiment, Outbox
from app.tables.keys import ApiKey

KEY_EXPIRES_SOON = timedelta(days=14)
COMMANDS = {
    KINDS: "bdlab worker",
    (INTERACTIVE,): "bdlab worker interactive",
    (CHECKS,): "bdlab worker checks",
}


def check_workers(installation: Installation) -> Iterator[Finding]:
    """A live worker on each queue, with this machine's code and clock."""
    if installation.database is None:
        return
    with installation.database.reading() as session:
        alive = repository.alive(session)
    if not alive and not installation.is_up and not installation.settings.broker_url:
        yield warning("workers", "none, because the service does not run", "run bdlab up")
        return
    for queues, command in COMMANDS.items():
        names = [f"{row.name} ({row.device})" for row in alive if set(queues) & set(row.queue.split(","))]
        queue = " or ".join(queues)
        if names:
            yield ok("workers", f"{queue}: {'; '.join(names)}")
        else:
            detail = f"no worker on the queue {queue!r} in the last {repository.ALIVE_SECONDS:g} s"
            yield error("workers", detail, f"run {command}")
    for text in skew(alive):
        yield warning("workers", text, "restart it with the code of this machine")


def check_relay(installation: Installation) -> Iterator[Finding]:
    """Messages and expired leases that a running relay would have handled."""
    if installation.database is None:
        return
    seconds = max(30.0, 10 * installation.settings.relay_seconds)
    unsent = (
        select(func.count())
        .select_from(Outbox)
        .join(Experiment, Experiment.id == Outbox.experiment_id)
        .where(
            Outbox.published_at.is_(None), Outbox.not_before < from_now(-seconds), Experiment.status == QUEUED
        )
    )
    expired = select(func.count()).where(
        Experiment.status == RUNNING, Experiment.lease_expires_at < from_now(-seconds)
    )
    with installation.database.reading() as session:
        messages, leases = session.scalar(unsent), session.scalar(expired)
    mend = "run python -m app.operations.relay; if it runs, see its log"
    if leases:
        yield error("relay", f"{leases} leases expired more than {seconds:.0f} s ago; it does not run", mend)
    elif messages:
        cause = "it does not run, or limits on running experiments hold them back"
        yield warning("relay", f"{messages} messages are overdue by more than {seconds:.0f} s: {cause}", mend)
    else:
        yield ok("relay", "no message and no lease is overdue")


def check_plugins(installation: Installation) -> Iterator[Finding]:
    """A definition of every attack and defense that stored experiments name."""
    if installation.database is None:
        return
    if missing := missing_plugins(installation.database):
        detail = f"nothing defines {', '.join(missing)}; their experiments can only be read"
        yield warning("plug-ins", detail, f"set {VARIABLE} to the folder that defines them")
    else:
        yield ok("plug-ins", "every stored experiment can run")


def check_keys(installation: Installation) -> Iterator[Finding]:
    """Whether the service needs keys, and at least one is valid."""
    if installation.database is None:
        return
    now = utcnow()
    with installation.database.reading() as session:
        keys = session.scalars(select(ApiKey)).all()
    if not keys:
        yield ok("keys", "there are none: only local requests are accepted, and all of them")
        return
    valid = [k for k in keys if k.revoked_at is None and (k.expires_at is None or k.expires_at > now)]
    if not valid:
        yield error("keys", "all are revoked or expired, so nobody has access", "run bdlab keys create")
        return
    admins = sum(ADMIN in key.scopes for key in valid)
    yield ok("keys", f"{len(valid)} of {len(keys)} are valid, {admins} of them with the scope {ADMIN!r}")
    for key in valid:
        if key.expires_at is not None and key.expires_at < now + KEY_EXPIRES_SOON:
            detail = (
                f"{key.prefix} of {key.owner.name} expires at {key.expires_at.isoformat(timespec='minutes')}"
            )
            yield warning("keys", detail, f"run bdlab keys create --owner {key.owner.name}")
