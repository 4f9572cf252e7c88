"""Authentication and authorization of every request.

A key is sent as ``Authorization: Bearer KEY``, or by browsers as the password of HTTP Basic. Until the first key is
created the service is open, but accepts only requests from this machine.
"""

import base64
import binascii
import logging
import time
from datetime import timedelta
from hashlib import sha256
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from starlette.types import Scope
from structlog.contextvars import bind_contextvars

from app.core.context import Context
from app.core.database import utcnow
from app.core.errors import AppError, ForbiddenError, TooManyError, UnauthorizedError
from app.core.security import LOCAL, SAFE_METHODS, Principal, is_address, is_loopback, scope_of
from app.tables.owners import Owner
from app.team.keys import repository
from app.team.keys.secrets import Pepper, prefix_of
from app.team.quotas import limits_of
from app.team.rate_limits import RateLimiter

log = logging.getLogger(__name__)
CACHE_SECONDS = 1.0
"""For how long a revoked key is still accepted, and an open service still open after its first key is created."""
CACHE_SIZE = 1000
LAST_USED_PRECISION = timedelta(minutes=1)
COMMAND = "`bdlab keys create`"
BASIC = 'Basic realm="backdoor-lab: any name, and a key as password"'
"""The challenge that makes a browser ask for a key."""
PROXY_HEADERS = frozenset(
    {
        "cdn-loop",
        "cf-connecting-ip",
        "client-ip",
        "fastly-client-ip",
        "forwarded",
        "true-client-ip",
        "via",
        "x-client-ip",
        "x-cluster-client-ip",
        "x-envoy-external-address",
        "x-real-ip",
    }
)
SENDER = "sender"
"""Where `recognize` puts its result into a request's scope."""


async def authorize(request: Request) -> None:
    """A dependency of the whole application. Raises UnauthorizedError, ForbiddenError, TooManyError."""
    required = scope_of(request.scope.get("endpoint"), request.method)
    if not required:
        return
    _check_origin(request)
    authenticator: Authenticator = request.app.state.authenticator
    sender: Principal | Exception | None = request.scope.get(SENDER)
    if isinstance(sender, Exception):
        raise sender
    principal = request.scope["principal"] = sender or await authenticator.authenticate(request)
    bind_contextvars(owner_id=principal.owner_id)
    if required not in principal.scopes:
        scopes = ", ".join(sorted(principal.scopes))
        raise ForbiddenError(f"this requires a key with the scope {required!r}; this key has: {scopes}")
    limit, limiter = principal.limits.requests, authenticator.rate_limiter
    if limit is not None and (seconds := await limiter.count_request(principal.owner_id, limit)):
        raise TooManyError(f"{principal.owner} may send {limit} requests a minute", retry_after=seconds)


async def recognize(scope: Scope) -> str | None:
    """The id of the owner whose valid key a request has, before its body is read; None if it has none.

    `authorize` uses the result later. If there is no valid key, it reports the reason.
    """
    request = Request(scope)
    authenticator: Authenticator = request.app.state.authenticator
    try:
        principal = scope[SENDER] = await authenticator.authenticate(request)
    except (AppError, SQLAlchemyError) as error:
        scope[SENDER] = error
        return None
    return principal.owner_id


class Authenticator:
    """Identifies the owner of a key. Results are cached for a second, so that polling needs no queries."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._pepper = Pepper(context.settings)
        self._cache: dict[str, tuple[float, Principal | str]] = {}
        self._closed = False
        self.rate_limiter = RateLimiter(context.settings)

    async def authenticate(self, request: Request) -> Principal:
        """The sender of a request.

        Raises UnauthorizedError with the reason, or ForbiddenError for a request from elsewhere to an open service.
        """
        key = _credential(request.headers.get("authorization", ""))
        cache_key = sha256(key.encode()).hexdigest()
        expires, result = self._cache.get(cache_key, (0.0, ""))
        if expires < time.monotonic():
            result = await run_in_threadpool(self._look_up, key)
            if len(self._cache) >= CACHE_SIZE:
                self._cache.clear()
            self._cache[cache_key] = (time.monotonic() + CACHE_SECONDS, result)
        if isinstance(result, str):
            browser = "text/html" in request.headers.get("accept", "")
            scheme = BASIC if browser else "Bearer"
            raise UnauthorizedError(result, headers={"WWW-Authenticate": scheme})
        if result.key is None:
            _check_local(request)
        return result

    def warn_if_open(self) -> None:
        """Log a warning if no key was ever created."""
        try:
            with self._context.database.whole.reading() as session:
                closed = repository.any_key(session)
        except SQLAlchemyError:  # the API starts even if its database is unavailable or not migrated yet
            return
        if not closed:
            log.warning("there is no API key: every user of this machine has full access; see %s", COMMAND)

    def _look_up(self, key: str) -> Principal | str:
        """The sender who has this key, or the reason why the key is rejected."""
        settings, now = self._context.settings, utcnow()
        with self._context.database.whole.reading() as session:
            if not self._closed and not repository.any_key(session):
                return Principal(limits=limits_of(session.get_one(Owner, LOCAL), settings))
            self._closed = True  # permanently, because keys are never deleted
            prefix = prefix_of(key)
            row = repository.by_prefix(session, prefix) if prefix else None
        if not key:
            return "this requires an API key, sent as `Authorization: Bearer KEY`"
        if row is None or not self._pepper.fits(key, row.digest):
            return "this API key is unknown"
        if row.revoked_at is not None:
            return "this API key was revoked"
        if row.expires_at is not None and row.expires_at <= now:
            return f"this API key expired at {row.expires_at.isoformat(timespec='seconds')}"
        if row.last_used_at is None or row.last_used_at < now - LAST_USED_PRECISION:
            self._touch(row.id)
        return Principal(
            owner_id=row.owner_id,
            owner=row.owner.name,
            scopes=frozenset(row.scopes),
            key=row.prefix,
            limits=limits_of(row.owner, settings),
        )

    def _touch(self, key_id: str) -> None:
        try:
            with self._context.database.whole.writing(durable=False) as session:
                repository.touch(session, key_id, utcnow(), LAST_USED_PRECISION)
        except OperationalError as error:  # not a reason to fail the request
            log.warning("the last use of a key could not be stored: %s", str(error).partition("\n")[0])


def _credential(header: str) -> str:
    """The key in an Authorization header; empty if there is none."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return "unreadable"
    return ""


def _check_local(request: Request) -> None:
    """Accept requests to an open service only from this machine, under a host name that no other website can have.

    Without the check of the name a website could reach the service by DNS rebinding. What a proxy forwards may come
    from anywhere, whatever address its headers claim.
    """
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    if "." in host and not host.endswith(".localhost") and not is_address(host):
        raise ForbiddenError(
            f"without an API key only local requests are accepted, to localhost and not to {host!r}; "
            f"create a key with {COMMAND}"
        )
    if not is_local(request):
        raise UnauthorizedError(
            "without an API key only local requests are accepted, and none that a proxy forwards; "
            f"create a key with {COMMAND} where the service runs",
            headers={"WWW-Authenticate": "Bearer"},
        )


def is_local(request: Request) -> bool:
    """Whether the sender is on this machine, as far as the connection and the lack of a proxy's headers tell."""
    peer = request.client.host if request.client else "localhost"  # a Unix socket
    return is_loopback(peer) and not any(map(_of_a_proxy, request.headers))


def _of_a_proxy(header: str) -> bool:
    """Whether only proxies send this header."""
    return header in PROXY_HEADERS or header.startswith(("x-forwarded", "x-original-"))


def _check_origin(request: Request) -> None:
    """Reject requests that another website makes a browser send together with its stored password (CSRF)."""
    if request.method in SAFE_METHODS:
        return
    origin = request.headers.get("origin")
    cross_origin = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    if cross_origin or request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        raise ForbiddenError("this request was sent by a page of another site")
