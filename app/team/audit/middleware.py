"""Writes the audit log: one entry for each request that can change something or that calls `force_audit`.

The entry is written before the response is sent, so a client that has the response finds its request in the log. It is
written in a transaction of its own, because requests that are rejected or fail are logged too; a process that is
killed between the two transactions leaves a change without an entry, and so may a power cut. Entries that the database
refuses are written when it accepts them again, without delaying a response. Requests without a valid key have no owner
and appear only in the service's log.
"""

import asyncio
import logging
from typing import Any
from uuid import uuid4

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.database import Database, utcnow, write
from app.core.security import LOCAL, READ, SAFE_METHODS, Principal, scope_of
from app.tables.audit import AuditEntry

log = logging.getLogger(__name__)
LONGEST_PATH = 300
RETRY_SECONDS = 2.0


def force_audit(request: Request) -> None:
    """Put a request into the audit log even if it changes nothing."""
    request.scope["audited"] = True


class AuditMiddleware:
    """Writes the entries. It must be inside `RequestMiddleware`, which sets the id of the request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._unwritten: list[dict[str, Any]] = []
        self._retries: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                await self._record(scope, message["status"], Headers(raw=message["headers"]).get("location"))
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except Exception:
            await self._record(scope, 500)
            raise

    async def _record(self, scope: Scope, status: int, location: str | None = None) -> None:
        entry = _entry(scope, status, location)
        if entry is None:
            return
        self._unwritten.append(entry)
        if self._retries is None or self._retries.done():
            await self._write(scope["app"].state.context.database.whole)

    async def _write(self, database: Database) -> None:
        """Write all entries, or start to retry it. If the database refuses them, the requests have taken effect all the
        same, so they must not be answered with an error."""
        entries, self._unwritten = self._unwritten, []
        self._unwritten = await run_in_threadpool(_insert, database, entries) + self._unwritten
        if self._unwritten and (self._retries is None or self._retries.done()):
            self._retries = asyncio.create_task(self._retry(database))

    async def _retry(self, database: Database) -> None:
        while self._unwritten:
            await asyncio.sleep(RETRY_SECONDS)
            await self._write(database)


def of_command(user: str, words: str, location: str) -> AuditEntry:
    """An entry for a command that changed the database directly, without the API."""
    return AuditEntry(
        at=utcnow(),
        request_id=uuid4().hex,
        owner=LOCAL,
        key=None,
        client=user[:64],
        method="COMMAND",
        route=words,
        path=words,
        status=0,
        location=location[:LONGEST_PATH],
    )


def _entry(scope: Scope, status: int, location: str | None) -> dict[str, Any] | None:
    """The entry of a request; None if it has none."""
    principal: Principal | None = scope.get("principal")
    if principal is None or not _is_audited(scope):
        return None
    client = scope.get("client")
    return {
        "at": utcnow(),
        "request_id": scope["request_id"],
        "owner": principal.owner,
        "key": principal.key,
        "client": client[0][:64] if client else "",
        "method": scope["method"],
        "route": getattr(scope.get("route"), "path", "unmatched"),
        "path": scope["path"][:LONGEST_PATH],
        "status": status,
        "location": location[:LONGEST_PATH] if location else None,
    }


def _is_audited(scope: Scope) -> bool:
    if scope.get("audited"):
        return True
    return scope["method"] not in SAFE_METHODS and scope_of(scope.get("endpoint"), scope["method"]) != READ


def _insert(database: Database, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write the entries. Returns those for which the database is not available."""
    for number, entry in enumerate(entries):
        try:
            with database.writing(durable=False) as session:
                write(session, AuditEntry, [entry])
        except SQLAlchemyError as error:
            unavailable = isinstance(error, OperationalError)
            log.error(
                "%s: %s %s by %s (%s), status %d, request %s: %s",
                "the audit entry is not written yet" if unavailable else "no audit entry",
                *(entry[name] for name in ("method", "path", "owner", "key", "status", "request_id")),
                str(error).partition("\n")[0],
            )
            if unavailable:
                return entries[number:]
    return []
