"""Keyset pagination with cursors that are opaque, signed, and valid only for the query that they came from."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from app.core.errors import BadRequestError
from app.core.security import Signer
from app.specs.base import digest

SIGNATURE = 16
T = TypeVar("T")
Position = list[Any]
"""The values that a row is sorted by: strings and integers."""


class ByAge(NamedTuple):
    """The position of a row in a list sorted by ``created_at`` and ``id``."""

    created_at: datetime
    id: str


def paginate(
    signer: Signer,
    query: Any,
    cursor: str | None,
    limit: int,
    fetch: Callable[[Position | None, int], Sequence[T]],
    position: Callable[[T], Position],
) -> tuple[Sequence[T], str | None]:
    """One page of rows, and the cursor of the next page if there is one.

    ``query`` is any JSON that decides what is listed and in which order. ``fetch`` gets the position after which the
    page starts and the maximum number of rows; ``position`` is that of a row. Raises BadRequestError for a bad cursor.
    """
    after = decode(signer, query, cursor) if cursor is not None else None
    rows = fetch(after, limit + 1)
    if len(rows) <= limit:
        return rows, None
    return rows[:limit], encode(signer, query, position(rows[limit - 1]))


def paginate_by_age(
    signer: Signer,
    query: Any,
    cursor: str | None,
    limit: int,
    fetch: Callable[[ByAge | None, int], Sequence[T]],
) -> tuple[Sequence[T], str | None]:
    """`paginate` for rows with ``created_at`` and ``id`` that are sorted by these two."""

    def fetch_after(position: Position | None, most: int) -> Sequence[T]:
        after = ByAge(datetime.fromisoformat(position[0]), position[1]) if position is not None else None
        return fetch(after, most)

    def position_of(row: Any) -> Position:
        return [row.created_at.isoformat(), row.id]

    return paginate(signer, query, cursor, limit, fetch_after, position_of)


def encode(signer: Signer, query: Any, position: Position) -> str:
    """The cursor for ``position`` in the answer to ``query``."""
    payload = json.dumps([digest(query)[:16], *position], separators=(",", ":")).encode()
    return urlsafe_b64encode(signer.sign(payload) + payload).decode().rstrip("=")


def decode(signer: Signer, query: Any, cursor: str) -> Position:
    """The position in ``cursor``. Raises BadRequestError unless the service issued it for this ``query``."""
    try:
        raw = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    except ValueError:
        raw = b""
    signature, payload = raw[:SIGNATURE], raw[SIGNATURE:]
    if not signer.fits(payload, signature):
        raise BadRequestError("cursor: not issued by this service; use the `next` link of a page")
    made_for, *position = json.loads(payload)
    if made_for != digest(query)[:16]:
        raise BadRequestError(
            "cursor: issued for other filters or another order; start again without a cursor"
        )
    return list(position)
