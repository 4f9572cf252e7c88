"""Principals and the scopes that routes need; and the service's secret, which signs cursors and links.

Every route needs a scope: by default ``read`` for GET and HEAD, ``write`` for all other methods. A decorator declares
another one: ``@needs(ADMIN)``, ``@needs(READ)`` for a POST that changes nothing, ``@public`` for a route without a key.
`app.team.access` enforces it before the route runs.
"""

import ipaddress
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

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
"""Methods that change nothing (RFC 9110, section 9.2.1)."""
READ, WRITE, BACKDOORED, ADMIN = "read", "write", "artifacts:backdoored", "admin"
SCOPES = {
    READ: "read everything of the owner",
    WRITE: "submit, change and delete",
    BACKDOORED: "download models and data that contain a backdoor",
    ADMIN: "manage keys and limits, and read the audit log, of all owners",
}
LOCAL = "local"
"""Id and name of the owner of everything that is created while the service has no API keys."""
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


@dataclass(frozen=True)
class Limits:
    """Quotas and rate limit of an owner; None is unlimited."""

    queued: int | None = None
    running: int | None = None
    device_seconds: int | None = None
    bytes: int | None = None
    webhooks: int | None = None
    requests: int | None = None


UNLIMITED = Limits()


@dataclass(frozen=True)
class Principal:
    """Who sent a request. ``key`` is the prefix of the API key; None while the service has no keys."""

    owner_id: str = LOCAL
    owner: str = LOCAL
    scopes: frozenset[str] = frozenset(SCOPES)
    key: str | None = None
    limits: Limits = UNLIMITED


NOBODY = Principal(owner_id="", owner="", scopes=frozenset())
"""The principal of public routes."""


def needs(scope: str) -> Callable[[Endpoint], Endpoint]:
    """Declare the scope that a route needs, if it differs from the default of its method."""

    def mark(endpoint: Endpoint) -> Endpoint:
        endpoint.scope = scope  # type: ignore[attr-defined]
        return endpoint

    return mark


def public(endpoint: Endpoint) -> Endpoint:
    """Declare that a route needs no API key."""
    return needs("")(endpoint)


def scope_of(endpoint: Callable[..., Any] | None, method: str) -> str:
    """The scope that a route needs; empty for a public one."""
    default = READ if method in SAFE_METHODS else WRITE
    scope: str = getattr(endpoint, "scope", default)
    return scope


def is_address(host: str) -> bool:
    """Whether ``host`` is an IP address and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether a host name or address can be reached only from this machine."""
    if not is_address(host):
        return host == "localhost"
    address = ipaddress.ip_address(host)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def keep_files_private() -> None:
    """Let nobody but this process's user read or write the files that it and its children create from now on."""
    os.umask(0o077)


class Signer:
    """Signs byte strings and verifies the signatures."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sign(self, data: bytes) -> bytes:
        """A signature of 16 bytes."""
        return hmac(self._secret, data, sha256).digest()[:16]

    def fits(self, data: bytes, signature: bytes) -> bool:
        return compare_digest(self.sign(data), signature)


def make_signer(settings: Settings) -> Signer:
    """A signer with the service's secret."""
    return Signer(secret_of(settings))


def secret_of(settings: Settings) -> bytes:
    """The secret of the settings, or of the file ``secret`` under home, which the first call creates."""
    secret = settings.secret.get_secret_value()
    return secret.encode() if secret else _read_or_create(settings.home_dir / "secret")


def _read_or_create(path: Path) -> bytes:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        try:
            os.link(temporary, path)  # unlike a rename this never replaces the secret of another process
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    return path.read_bytes()
