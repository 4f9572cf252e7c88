"""The gate before every route: who asks, and is it allowed?

A key comes as ``Authorization: Bearer KEY``, or as the password of HTTP Basic, which is how a browser asks for it.
As long as no key was ever made the service is open, but to this machine alone.
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
from structlog.contextvars import bind_contextvars

from app.core.context import Context
from app.core.database import utcnow
from app.core.errors import ForbiddenError, TooManyError, UnauthorizedError
from app.core.security import LOCAL, SAFE_METHODS, Principal, scope_of
from app.tables.owners import Owner
from app.team.addresses import is_address, is_loopback
from app.team.keys import repository
from app.team.keys.secrets import Pepper, prefix_of
from app.team.limits import limits_of
from app.team.rate_limits import Rates

log = logging.getLogger(__name__)
REMEMBERED_SECONDS = 1.0
"""A key that is revoked, and a service that is closed by its first key, still let requests in for so long."""
MOST_REMEMBERED = 1000
TOUCH = timedelta(minutes=1)
COMMAND = "`bdlab keys create`"


async def guard(request: Request) -> None:
    """A dependency of the whole application. Raises UnauthorizedError, ForbiddenError, TooManyError."""
    needed = scope_of(request.scope.get("endpoint"), request.method)
    if not needed:
        return
    _check_origin(request)
    gate: Gate = request.app.state.gate
    principal = request.scope["principal"] = await gate.identify(request)
    bind_contextvars(owner_id=principal.owner_id)
    if needed not in principal.scopes:
        has = ", ".join(sorted(principal.scopes))
        raise ForbiddenError(f"this needs a key with the scope {needed!r}; this key has: {has}")
    if wait := await gate.rates.take(principal):
        most = principal.limits.requests
        raise TooManyError(f"{principal.owner} may send {most} requests a minute", retry_after=wait)


class Gate:
    """Finds out whose key it is. What it found is remembered for a second, so that polling costs no queries."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._pepper = Pepper(context.settings)
        self._found: dict[str, tuple[float, Principal | str]] = {}
        self._closed = False
        self.rates = Rates(context.settings)

    async def identify(self, request: Request) -> Principal:
        """Who sent this. Raises UnauthorizedError, with the reason; ForbiddenError while the service is open but
        the request does not come from this machine."""
        key = _credential(request.headers.get("authorization", ""))
        name = sha256(key.encode()).hexdigest()
        until, found = self._found.get(name, (0.0, ""))
        if until < time.monotonic():
            found = await run_in_threadpool(self._look_up, key)
            if len(self._found) >= MOST_REMEMBERED:
                self._found.clear()
            self._found[name] = (time.monotonic() + REMEMBERED_SECONDS, found)
        if isinstance(found, str):
            browser = "text/html" in request.headers.get("accept", "")
            scheme = 'Basic realm="backdoor-lab: any name, and a key as password"' if browser else "Bearer"
            raise UnauthorizedError(found, headers={"WWW-Authenticate": scheme})
        if found.key is None:
            _check_local(request)
        return found

    def say_if_open(self) -> None:
        """Tell the log that no key was ever made, if so."""
        try:
            with self._context.database.whole.reading() as session:
                closed = repository.any_key(session)
        except SQLAlchemyError:  # the API starts although its database is away, or is not migrated yet
            return
        if not closed:
            log.warning("there is no API key: whoever uses this machine may do everything; see %s", COMMAND)

    def _look_up(self, key: str) -> Principal | str:
        """Whose key this is, or why it is refused."""
        settings, now = self._context.settings, utcnow()
        with self._context.database.whole.reading() as session:
            if not self._closed and not repository.any_key(session):
                return Principal(limits=limits_of(session.get_one(Owner, LOCAL), settings))
            self._closed = True  # for good, since keys are never deleted
            prefix = prefix_of(key)
            row = repository.by_prefix(session, prefix) if prefix else None
        if not key:
            return "this needs an API key, sent as `Authorization: Bearer KEY`"
        if row is None or not self._pepper.fits(key, row.digest):
            return "this API key is not known here"
        if row.revoked_at is not None:
            return "this API key was revoked"
        if row.expires_at is not None and row.expires_at <= now:
            return f"this API key expired at {row.expires_at.isoformat(timespec='seconds')}"
        if row.last_used_at is None or row.last_used_at < now - TOUCH:
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
            with self._context.database.whole.writing() as session:
                repository.touch(session, key_id, utcnow(), TOUCH)
        except OperationalError as error:  # a request does not fail because this cannot be noted
            log.warning("the use of a key was not noted: %s", str(error).partition("\n")[0])


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
    """While the service is open: only for this machine, under a name that no foreign web page can have."""
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    if "." in host and not host.endswith(".localhost") and not is_address(host):
        raise ForbiddenError(
            f"as long as there is no API key this machine alone is served, under localhost, not {host!r}; "
            f"make one with {COMMAND}"
        )
    peer = request.client.host if request.client else ""
    if is_address(peer) and not is_loopback(peer):
        raise UnauthorizedError(
            f"as long as there is no API key this machine alone is served; make one with {COMMAND} where the "
            "service runs",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _check_origin(request: Request) -> None:
    """Refuse what a foreign web page makes a browser send, with the password that the browser remembers."""
    if request.method in SAFE_METHODS:
        return
    origin = request.headers.get("origin")
    foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    if foreign or request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        raise ForbiddenError("this request comes from a page of another site")
