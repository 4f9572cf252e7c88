"""Answers that the routes of sweeps and of studies build alike, and the parameters that they share."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Header, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from app.sweeps.schemas import Retryable

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1, max_length=255, description="Sending the same key again gives the first answer again."
    ),
]
Limit = Annotated[int, Query(ge=1, le=200)]
Cursor = Annotated[str | None, Query(description="From the `next` link of the page before")]
States = Annotated[
    list[Retryable] | None,
    Query(
        description="Which to queue again; may be repeated. By default those that failed",
        examples=[["failed"]],
    ),
]


def accepted(answer: dict[str, Any], path: str, *, replayed: bool) -> Response:
    """What a submission gives: the thing itself, and where it is."""
    headers = {"Location": f"{path}/{answer['id']}"}
    if replayed:
        headers["Idempotency-Replayed"] = "true"
    return JSONResponse(answer, status_code=202, headers=headers)


def as_json(model: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """The model as the body."""
    return Response(
        model.model_dump_json(), status_code=status, media_type="application/json", headers=headers
    )


def paged(request: Request, cursor: str | None, make: Callable[[str | None], BaseModel]) -> Response:
    """One page, made from the link to the next one, which is also in the ``Link`` header."""
    if cursor is None:
        return as_json(make(None))
    url = request.url.include_query_params(cursor=cursor)
    link = f"{url.path}?{url.query}"
    return as_json(make(link), headers={"Link": f'<{link}>; rel="next"'})
