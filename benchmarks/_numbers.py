"""The numbers behind a page of docs/results: a file of JSON lines beside it, which is committed like the page.

A page is written from its file. So a row can be measured anywhere and at any time, without the rows before it, and
programs can read the numbers. Those with ``rounded`` were on a page before its file existed, and have its decimals.
"""

import json
from pathlib import Path
from typing import Any


class Numbers:
    """Documents by key; each has its own line, sorted by key, so that two branches that add some can be merged."""

    def __init__(self, page: Path) -> None:
        self.path = page.with_suffix(".jsonl")

    def read(self) -> dict[str, dict[str, Any]]:
        """All documents by key; none if there is no file yet."""
        if not self.path.is_file():
            return {}
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return {document.pop("key"): document for document in map(json.loads, lines)}

    def find(self, key: str) -> dict[str, Any] | None:
        return self.read().get(key)

    def store(self, key: str, document: dict[str, Any]) -> None:
        """Add a document, or replace the one with this key."""
        documents = sorted((self.read() | {key: document}).items())
        lines = [json.dumps({"key": name} | content) + "\n" for name, content in documents]
        self.path.write_text("".join(lines), encoding="utf-8")
