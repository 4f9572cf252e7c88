"""Who can get in."""

from collections.abc import Iterator
from datetime import timedelta
from urllib.parse import urlsplit

from sqlalchemy import select

from app.core.database import utcnow
from app.core.security import ADMIN
from app.operations.doctor.findings import Finding, Patient, error, ok, warning
from app.tables.keys import ApiKey
from app.team.addresses import is_loopback

SOON = timedelta(days=14)


def keys(patient: Patient) -> Iterator[Finding]:
    """Whether the service is closed, and whether anybody still has a key to it."""
    if patient.database is None:
        return
    now = utcnow()
    with patient.database.reading() as session:
        rows = session.scalars(select(ApiKey)).all()
    if not rows:
        host = _listens(patient)
        if host is not None and not is_loopback(host):
            yield error("keys", f"there is none, and the service listens on {host}", "bdlab keys create")
        else:
            yield ok(
                "keys", "there is none: this machine alone is served, and whoever uses it may do everything"
            )
        return
    good = [
        key for key in rows if key.revoked_at is None and (key.expires_at is None or key.expires_at > now)
    ]
    if not good:
        yield error("keys", "all are revoked or expired: nobody can get in", "bdlab keys create")
        return
    admins = sum(ADMIN in key.scopes for key in good)
    yield ok("keys", f"{len(good)} of {len(rows)} are good, {admins} of them with the scope {ADMIN!r}")
    for key in good:
        if key.expires_at is not None and key.expires_at < now + SOON:
            until = key.expires_at.isoformat(timespec="minutes")
            mend = f"bdlab keys create --owner {key.owner.name}"
            yield warning("keys", f"the key {key.prefix} of {key.owner.name} expires at {until}", mend)


def _listens(patient: Patient) -> str | None:
    try:
        return urlsplit((patient.settings.home_dir / "address").read_text().strip()).hostname
    except (OSError, ValueError):
        return None
