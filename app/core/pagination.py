"""Keyset cursors: opaque, signed, and good only for the query that they came from."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

from app.core.errors import BadRequestError
from app.core.security import Signer
from app.specs.base import digest

SIGNATURE = 16


def encode(signer: Signer, query: Any, position: list[str]) -> str:
    """A cursor that stands after ``position`` in the answer to ``query`` (any JSON: filters and order)."""
    payload = json.dumps([digest(query)[:16], *position], separators=(",", ":")).encode()
    return urlsafe_b64encode(signer.sign(payload) + payload).decode().rstrip("=")


def decode(signer: Signer, query: Any, cursor: str) -> list[str]:
    """The position in ``cursor``. Raises BadRequestError for one that we did not make for this ``query``."""
    try:
        raw = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    except ValueError:
        raw = b""
    signature, payload = raw[:SIGNATURE], raw[SIGNATURE:]
    if not signer.fits(payload, signature):
        raise BadRequestError("cursor: not a cursor that this service gave out; use the page's `next` link")
    made_for, *position = json.loads(payload)
    if made_for != digest(query)[:16]:
        raise BadRequestError("cursor: made for other filters or another order; start again without a cursor")
    return [str(part) for part in position]
