"""Writes the audit log: one entry for each request that can change something or that calls `force_audit`.

The entry is written before the response is sent, so a client that has the response finds its request in the log. It is
written in a transaction of its own, because requests that are rejected or fail are logged too; a process that is
killed between the two transactions leaves a change without an entry. Requests without a valid key have no owner and
appear only in the service's log.
"""

import logging
from typing import Any
from uuid import uuid4

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.database import Database, utcnow, write
from app.core.security import LOCAL, READ, SAFE_METHODS, Principal, scope_of
from app.tables.audit import AuditEntry

log = logging.getLogger(__name__)
LONGEST_PATH = 300


def force_audit(request: Request) -> None:
    """Put a request into the audit log even if it changes nothing."""
    request.scope["audited"] = True


class AuditMiddleware:
    """Writes the entries. It must be inside `RequestMiddleware`, which sets the id of the request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                await _write_entry(scope, message["status"], Headers(raw=message["headers"]).get("location"))
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except Exception:
            await _write_entry(scope, 500)
            raise


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


async def _write_entry(scope: Scope, status: int, location: str | None = None) -> None:
    principal: Principal | None = scope.get("principal")
    if principal is None or not _is_audited(scope):
        return
    client = scope.get("client")
    entry = {
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
    try:
        await run_in_threadpool(_insert, scope["app"].state.context.database.whole, entry)
    except SQLAlchemyError as error:
        # The request has taken effect, so it must not be answered with an error.
        log.error(
            "no audit entry: %s %s by %s (%s), status %d, request %s: %s",
            entry["method"],
            entry["path"],
            entry["owner"],
            entry["key"],
            status,
            entry["request_id"],
            str(error).partition("\n")[0],
        )


def _is_audited(scope: Scope) -> bool:
    if scope.get("audited"):
        return True
    return scope["method"] not in SAFE_METHODS and scope_of(scope.get("endpoint"), scope["method"]) != READ


def _insert(database: Database, entry: dict[str, Any]) -> None:
    with database.writing() as session:
        write(session, AuditEntry, [entry])
