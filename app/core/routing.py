"""What the routes of several domains share: parameters, and answers that are built alike."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from app.core.errors import MediaTypeError

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1, max_length=255, description="Sending the same key again gives the first answer again."
    ),
]
Limit = Annotated[int, Query(ge=1, le=200)]
Cursor = Annotated[str | None, Query(description="From the `next` link of the page before")]


async def require_json(request: Request) -> None:
    """Refuse a body of another type before it is taken for a wrong spec."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise MediaTypeError(
            f"the body is {kind or 'of no type'}; send it with Content-Type: application/json"
        )


JsonBody = Annotated[None, Depends(require_json)]


def accepted(answer: dict[str, Any], location: str, *, replayed: bool) -> Response:
    """What a submission gives: the thing itself, and where to look."""
    headers = {"Location": location}
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
    link, headers = following(request, cursor)
    return as_json(make(link), headers=headers)


def following(request: Request, cursor: str | None) -> tuple[str | None, dict[str, str]]:
    """The link to the page that begins at ``cursor``, and the header that holds it; none if there is no cursor."""
    if cursor is None:
        return None, {}
    url = request.url.include_query_params(cursor=cursor)
    link = f"{url.path}?{url.query}"
    return link, {"Link": f'<{link}>; rel="next"'}
