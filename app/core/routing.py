"""What the routes of several domains share: parameters, JSON bodies, content negotiation, and responses."""

import json
import re
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from typing import Annotated, Any

from fastapi import Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from app.core.errors import BadRequestError, InvalidError, MediaTypeError
from app.core.validation import FieldError, shown

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="A request with the same key gets the first one's answer again.",
    ),
]
Limit = Annotated[int, Query(ge=1, le=200)]
Cursor = Annotated[str | None, Query(description="From the `next` link of the previous page")]


async def reject_unknown_parameters(request: Request) -> None:
    """A dependency of the routers. Raises InvalidError for query parameters that the route does not declare."""
    names = [parameter.alias for parameter in request.scope["route"].dependant.query_params]
    errors = []
    for name in sorted(set(request.query_params) - set(names)):
        close = get_close_matches(name, names, 1)
        hint = f"; did you mean {close[0]}" if close else ""
        message = f"unknown parameter{hint}; allowed: {', '.join(names) or 'none'}"
        errors.append(FieldError(field=shown(name), value=shown(request.query_params[name]), message=message))
    if errors:
        raise InvalidError.of_all(errors)


def parse_fields(text: str | None, model: type[BaseModel], default: Collection[str]) -> Collection[str]:
    """The fields of ``model`` that the parameter ``fields`` selects: names with commas between them, or ``*`` for all.

    Without the parameter, ``default``. Raises InvalidError for the names that are not fields.
    """
    if text is None:
        return default
    names = {name.strip() for name in text.split(",")}
    allowed = {"*": None, **model.model_fields}
    if unknown := sorted(names - allowed.keys()):
        message = f"unknown field; allowed: {', '.join(allowed)}"
        raise InvalidError.of_all(
            [FieldError(field="fields", value=shown(name), message=message) for name in unknown]
        )
    return model.model_fields.keys() if "*" in names else names


async def require_json(request: Request) -> None:
    """Raises MediaTypeError unless the body is JSON, so that it is not reported as an invalid spec.

    Raises BadRequestError for JSON that is not UTF-8 or ambiguous, which FastAPI's parser has accepted.
    """
    kind, _, parameters = request.headers.get("content-type", "").lower().partition(";")
    kind = kind.strip()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise MediaTypeError(
            f"the body's type is {kind or 'missing'}; send it with Content-Type: application/json"
        )
    charset = re.search(r"charset\s*=\s*\"?([^\s;\"]*)", parameters)
    if charset is not None and charset[1] not in ("utf-8", "utf8", "us-ascii"):
        raise MediaTypeError(f"the body's encoding is {shown(charset[1])}; JSON must be UTF-8")
    if await request.body():  # a missing one is reported as such
        await read_json(request)


async def read_json(request: Request) -> Any:
    """The body as JSON. Raises BadRequestError."""
    try:
        return parse_json(await request.body())
    except JsonError as error:
        raise BadRequestError(f"the body is {error}") from error


JsonBody = Annotated[None, Depends(require_json)]


class JsonError(ValueError):
    """Text that is not accepted; the message says what it is, as in "nested too deeply"."""


def parse_json(data: bytes) -> Any:
    """The value in ``data``, which is UTF-8 and has each key once in an object; Python's parser accepts more.

    Raises JsonError, but not for NaN and infinities, which a field's own error explains.
    """
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_unique)
    except JsonError:
        raise
    except UnicodeDecodeError as error:
        raise JsonError(f"not JSON in UTF-8: byte {error.start} does not belong there") from error
    except json.JSONDecodeError as error:
        raise JsonError(f"not valid JSON: {error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise JsonError("nested too deeply") from error
    except ValueError as error:  # Python limits the digits of an integer
        raise JsonError("not accepted: a number in it has too many digits") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise JsonError(f"ambiguous: an object in it has the key {shown(name)!r} twice")
        seen.add(name)
    raise AssertionError


def accepted(answer: dict[str, Any], location: str, *, replayed: bool) -> Response:
    """The response to a submission: 202 with the new resource and its location."""
    headers = {"Location": location}
    if replayed:
        headers["Idempotency-Replayed"] = "true"
    return JSONResponse(answer, status_code=202, headers=headers)


def as_json(
    model: BaseModel,
    status: int = 200,
    headers: dict[str, str] | None = None,
    include: dict[str, Any] | None = None,
) -> Response:
    """A response with the model as JSON, or with the parts of it that pydantic's ``include`` selects."""
    content = model.model_dump_json(include=include)
    return Response(content, status_code=status, media_type="application/json", headers=headers)


def paged(
    request: Request,
    cursor: str | None,
    make: Callable[[str | None], BaseModel],
    include: dict[str, Any] | None = None,
) -> Response:
    """The page that ``make`` builds from the link to the next one, which is also in the ``Link`` header."""
    link, headers = following(request, cursor)
    return as_json(make(link), headers=headers, include=include)


def following(request: Request, cursor: str | None) -> tuple[str | None, dict[str, str]]:
    """The link to the page that starts at ``cursor``, and the ``Link`` header with it; nothing without a cursor."""
    if cursor is None:
        return None, {}
    url = request.url.include_query_params(cursor=cursor)
    link = f"{url.path}?{url.query}"
    return link, {"Link": f'<{link}>; rel="next"'}


def preferred_media_type(accept: str | None, offered: Sequence[str]) -> str:
    """The media type of ``offered`` that an Accept header prefers; the first one if the header is missing."""
    qualities: dict[str, float] = {}
    for media_range in (accept or "*/*").lower().split(","):
        name, *parameters = (part.strip() for part in media_range.split(";"))
        quality = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        try:
            qualities[name] = float(quality)
        except ValueError:
            qualities[name] = 0.0

    def quality_of(media_type: str) -> float:
        ranges = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
        return next((qualities[name] for name in ranges if name in qualities), 0.0)

    return max(offered, key=quality_of)
