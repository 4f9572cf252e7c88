"""Writes the audit log: one row for each request that may change something, and for what a route marks.

The row is written before the answer leaves, so whoever has the answer finds the request in the log. It is a
transaction of its own, because it also tells of requests that were refused or broke. A process that is killed
between the two leaves a change without its row. Requests without a good key have nobody to tell of; they are in the
service's log.
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


def mark(request: Request) -> None:
    """Have this request in the audit log although it changes nothing."""
    request.scope["audited"] = True


class Trail:
    """Middleware inside `app.core.request_middleware.RequestMiddleware`, which gives each request its id."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                await _note(scope, message["status"], Headers(raw=message["headers"]).get("location"))
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except Exception:
            await _note(scope, 500)
            raise


def of_command(user: str, words: str, location: str) -> AuditEntry:
    """An entry for what the command line did on the database, past the API."""
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


async def _note(scope: Scope, status: int, location: str | None = None) -> None:
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
        await run_in_threadpool(_write, scope["app"].state.context.database.whole, entry)
    except SQLAlchemyError as error:
        # What was done is done, and the answer must not say otherwise.
        log.error(
            "not in the audit log: %s %s by %s (%s), answered %d, request %s: %s",
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


def _write(database: Database, entry: dict[str, Any]) -> None:
    with database.writing() as session:
        write(session, AuditEntry, [entry])
