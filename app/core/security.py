"""Who asks, and what for; and the service's own secret, with which it signs what it wants back unchanged.

Every route is closed unless it says otherwise. By default GET and HEAD need the scope ``read``, every other method
``write``. A route that differs says so right above its function: ``@needs(ADMIN)``, ``@needs(READ)`` for a POST that
changes nothing, ``@public`` for one that is for everybody. `app.team.access` enforces it before the route runs.
"""

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from hmac import new as hmac
from pathlib import Path
from typing import Any, TypeVar

from app.settings import Settings

READ, WRITE, BACKDOORED, ADMIN = "read", "write", "artifacts:backdoored", "admin"
SCOPES = {
    READ: "look at everything of the owner's",
    WRITE: "submit, change and delete",
    BACKDOORED: "download models and data that carry a backdoor",
    ADMIN: "manage keys and limits, and read the audit log, of all owners",
}
LOCAL = "local"
"""Id and name of the owner of everything that is created while the service is open."""
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


@dataclass(frozen=True)
class Limits:
    """What an owner may have and do; None is no limit."""

    queued: int | None = None
    running: int | None = None
    device_seconds: int | None = None
    bytes: int | None = None
    webhooks: int | None = None
    requests: int | None = None


UNLIMITED = Limits()


@dataclass(frozen=True)
class Principal:
    """Who sent a request. ``key`` is the prefix of the API key; None while the service is open."""

    owner_id: str = LOCAL
    owner: str = LOCAL
    scopes: frozenset[str] = frozenset(SCOPES)
    key: str | None = None
    limits: Limits = UNLIMITED


NOBODY = Principal(owner_id="", owner="", scopes=frozenset())
"""Whoever asks for a public route."""


def needs(scope: str) -> Callable[[Endpoint], Endpoint]:
    """Declare the scope that a route needs, where it is not the one that follows from the method."""

    def mark(endpoint: Endpoint) -> Endpoint:
        endpoint.scope = scope  # type: ignore[attr-defined]
        return endpoint

    return mark


def public(endpoint: Endpoint) -> Endpoint:
    """Declare that a route is for everybody, key or not."""
    return needs("")(endpoint)


def scope_of(endpoint: Callable[..., Any] | None, method: str) -> str:
    """The scope that a route needs; empty for a public one."""
    default = READ if method in ("GET", "HEAD", "OPTIONS") else WRITE
    scope: str = getattr(endpoint, "scope", default)
    return scope


class Signer:
    """Signs and checks short texts."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sign(self, data: bytes) -> bytes:
        """16 bytes that only the holder of the secret can make."""
        return hmac(self._secret, data, sha256).digest()[:16]

    def fits(self, data: bytes, signature: bytes) -> bool:
        return compare_digest(self.sign(data), signature)


def make_signer(settings: Settings) -> Signer:
    """A signer with the secret of the settings, or of the file ``secret`` under home, made at the first start."""
    return Signer(secret_of(settings))


def secret_of(settings: Settings) -> bytes:
    """The secret itself."""
    given = settings.secret.get_secret_value()
    return given.encode() if given else _from_file(settings.home_dir / "secret")


def _from_file(path: Path) -> bytes:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        mine = path.with_name(f"{path.name}.{os.getpid()}")
        descriptor = os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        try:
            os.link(mine, path)  # unlike a rename this never replaces the secret of another process
        except FileExistsError:
            pass
        finally:
            mine.unlink()
    return path.read_bytes()
