"""Nested documents as flat ones with dotted paths."""

from collections.abc import Mapping
from typing import Any


def flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"attack": {"name": "sig"}}`` as ``{"attack.name": "sig"}``; a list is one value, an empty object none.

    ``prefix`` is the path of ``document`` itself.
    """
    flat: dict[str, Any] = {}
    for name, value in document.items():
        path = f"{prefix}.{name}" if prefix else name
        flat |= flatten(value, path) if isinstance(value, Mapping) else {path: value}
    return flat
