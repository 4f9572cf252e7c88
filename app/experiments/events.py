"""Events of an experiment, as server-sent events or JSON, and its log."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import EventSourceResponse, format_sse_event

from app.core.context import Context, Ctx
from app.core.errors import BadRequestError, NotFoundError, require
from app.core.openapi import problems
from app.core.routing import preferred_media_type
from app.core.turns import Kind
from app.core.validation import shown
from app.experiments import repository
from app.experiments.schemas import EventOut, Events
from app.specs.status import TERMINAL
from app.tables.experiments import LogLine

router = APIRouter(prefix="/v1/experiments/{experiment_id}", tags=["events"])

POLL_SECONDS = 0.5
HEARTBEAT_SECONDS = 5.0
BATCH = 500
STREAM, JSON = "text/event-stream", "application/json"
TEXT, LINES = "text/plain", "application/x-ndjson"
STREAMS = Kind("event streams", per_owner=100)


async def _until_response_ends() -> AsyncIterator[AsyncExitStack]:
    """A stack that is unwound after the last byte of the response, also if the client has gone before the first."""
    async with AsyncExitStack() as stack:
        yield stack


UntilResponseEnds = Annotated[AsyncExitStack, Depends(_until_response_ends)]


@router.get(
    "/events",
    summary="Follow an experiment",
    response_model=Events,
    responses={
        200: {"description": "Events.", "content": {STREAM: {"schema": {"type": "string"}}}},
        204: {"description": "The experiment has ended and the client has seen all; an EventSource stops."},
        **problems(400, 404, 422, 429),
    },
)
async def events(
    experiment_id: str,
    context: Ctx,
    until_response_ends: UntilResponseEnds,
    accept: Annotated[str | None, Header()] = None,
    last_event_id: Annotated[str | None, Header(description="Resume a stream after this event")] = None,
    after: Annotated[
        int | None, Query(ge=0, le=2**63 - 1, description="As JSON: events after this id")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> Response:
    """Server-sent events: `state`, `progress`, `result`, `warning`, `artifact`.

    The stream starts with the first event, or after `Last-Event-ID`, and ends after the event of the final state.
    With `after`, or `Accept: application/json`, the response is a page of the same events as JSON.
    """
    if after is not None or preferred_media_type(accept, [STREAM, JSON]) == JSON:
        page = await run_in_threadpool(_read, context, experiment_id, after or 0, limit)
        return Response(page.model_dump_json(), media_type=JSON)
    start = 0
    if last_event_id:
        if not last_event_id.isascii() or not last_event_id.isdigit() or len(last_event_id) > 18:
            raise BadRequestError(
                f"Last-Event-ID: {shown(last_event_id)} is not the id of an event, which is a whole number"
            )
        start = int(last_event_id)
    first = await run_in_threadpool(_read, context, experiment_id, start, BATCH)
    if first.finished and not first.events and start:
        return Response(status_code=204)
    turn = context.turns.take(STREAMS, context.principal.owner_id)
    await until_response_ends.enter_async_context(turn)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return EventSourceResponse(_stream(context, experiment_id, first), headers=headers)


@router.get(
    "/logs",
    summary="An experiment's log",
    response_class=Response,
    responses={
        200: {
            "description": "One JSON object a line, or plain text.",
            "content": {LINES: {"schema": {"type": "string"}}, TEXT: {"schema": {"type": "string"}}},
        },
        **problems(404, 422),
    },
)
def logs(
    experiment_id: str,
    context: Ctx,
    accept: Annotated[str | None, Header()] = None,
    offset: Annotated[int, Query(ge=0, le=2**53, description="Number of lines to skip")] = 0,
    tail: Annotated[int | None, Query(ge=1, le=10_000, description="Only the last lines")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> Response:
    """What the workers logged: JSON lines, or text with `Accept: text/plain`.

    The header `X-Next-Offset` is the `offset` of the lines that follow.
    """
    with context.database.reading() as session:
        require(repository.status(session, experiment_id), "experiment", experiment_id)
        if tail is not None:
            offset = max(offset, repository.count_log(session, experiment_id) - tail)
            limit = tail
        rows = repository.log(session, experiment_id, offset, limit)
    kind = preferred_media_type(accept, [LINES, TEXT])
    lines = _as_text(rows) if kind == TEXT else _as_json(rows, offset)
    headers = {"X-Next-Offset": str(offset + len(rows))}
    return Response("".join(lines), media_type=kind, headers=headers)


async def _stream(context: Context, experiment_id: str, page: Events) -> AsyncIterator[bytes]:
    """Between two queries it holds neither a session nor a thread."""
    yield format_sse_event(retry=2000)
    silent_since = time.monotonic()
    while True:
        for event in page.events:
            data = json.dumps({"at": event.at.isoformat(), **event.data})
            yield format_sse_event(id=str(event.id), event=event.type, data_str=data)
            silent_since = time.monotonic()
        if page.finished:
            return
        if len(page.events) < BATCH:
            if time.monotonic() - silent_since >= HEARTBEAT_SECONDS:
                yield format_sse_event(comment="still here")
                silent_since = time.monotonic()
            await asyncio.sleep(POLL_SECONDS)
        try:
            page = await run_in_threadpool(_read, context, experiment_id, page.after, BATCH)
        except NotFoundError:  # deleted meanwhile
            return


def _read(context: Context, experiment_id: str, after: int, limit: int) -> Events:
    with context.database.reading() as session:
        # The status first: if the experiment has ended by then, its last event is already written.
        status = require(repository.status(session, experiment_id), "experiment", experiment_id)
        rows = repository.events(session, experiment_id, after, limit)
    return Events(
        events=[EventOut.model_validate(row, from_attributes=True) for row in rows],
        after=rows[-1].id if rows else after,
        finished=status in TERMINAL and len(rows) < limit,
    )


def _as_text(rows: Sequence[LogLine]) -> Iterator[str]:
    for row in rows:
        yield f"{row.at.isoformat(timespec='milliseconds')} [{row.attempt}] {row.message}\n"


def _as_json(rows: Sequence[LogLine], offset: int) -> Iterator[str]:
    for number, row in enumerate(rows, offset):
        line = {"offset": number, "at": row.at.isoformat(), "attempt": row.attempt, "message": row.message}
        yield json.dumps(line, ensure_ascii=False) + "\n"
