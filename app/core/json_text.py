"""JSON of a request: UTF-8, and each key once in an object. Python's parser accepts more."""

import json
from typing import Any

from app.core.validation import shown


class JsonError(ValueError):
    """Text that is not accepted; the message says what it is, as in "nested too deeply"."""


def parse_json(data: bytes) -> Any:
    """The value in ``data``. Raises JsonError, but not for NaN and infinities, which a field's own error explains."""
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
