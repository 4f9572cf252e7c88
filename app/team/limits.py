"""Which limits hold for an owner."""

from app.core.security import LOCAL, Limits
from app.settings import Settings
from app.tables.owners import Owner


def limits_of(owner: Owner, settings: Settings) -> Limits:
    """The owner's own, else those of the settings. The owner ``local`` has only its own: settings are for people
    with keys."""
    default = Limits() if owner.id == LOCAL else defaults(settings)

    def first(own: int | None, usual: int | None) -> int | None:
        return usual if own is None else own

    return Limits(
        queued=first(owner.max_queued, default.queued),
        running=first(owner.max_running, default.running),
        device_seconds=first(owner.max_device_seconds, default.device_seconds),
        bytes=first(owner.max_bytes, default.bytes),
        webhooks=first(owner.max_webhooks, default.webhooks),
        requests=first(owner.max_requests, default.requests),
    )


def defaults(settings: Settings) -> Limits:
    """The settings' limits."""
    return Limits(
        queued=settings.quota_queued,
        running=settings.quota_running,
        device_seconds=settings.quota_device_seconds,
        bytes=settings.quota_bytes,
        webhooks=settings.quota_webhooks,
        requests=settings.rate_limit,
    )
