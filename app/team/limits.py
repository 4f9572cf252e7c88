"""The limits of an owner."""

from dataclasses import fields

from app.core.security import LOCAL, Limits
from app.settings import Settings
from app.tables.owners import Owner


def limits_of(owner: Owner, settings: Settings) -> Limits:
    """The owner's own limits, else those of the settings, which apply only to owners with keys: not to ``local``."""

    def limit(name: str) -> int | None:
        own: int | None = getattr(owner, f"max_{name}")
        if own is not None or owner.id == LOCAL:
            return own
        default: int | None = getattr(settings, "rate_limit" if name == "requests" else f"quota_{name}")
        return default

    return Limits(**{field.name: limit(field.name) for field in fields(Limits)})
