"""Sweeps and studies in the typed client: ``client.sweeps`` and ``client.studies``."""

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from app.specs.base import Spec
from app.specs.status import TERMINAL

if TYPE_CHECKING:
    from bdlab.base_client import Client

Json = dict[str, Any]


class _Many:
    """What sweeps and studies have in common: a request that stands for many experiments."""

    path: str
    name: str

    def __init__(self, client: "Client") -> None:
        self._client = client

    def submit(self, spec: Spec | Json, *, idempotency_key: str | None = None) -> Json:
        """Submit it. The key, by default a fresh one, makes repeating the call safe."""
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return self._client._object("POST", self.path, json=as_json(spec), headers=headers, repeat=True)

    def validate(self, spec: Spec | Json) -> Json:
        """Check it without running it, and see how much of it is there already."""
        return self._client._object("POST", f"{self.path}:validate", json=as_json(spec), repeat=True)

    def list(self, **query: Any) -> Iterator[Json]:
        """All, newest first, page by page; ``query``: limit, the size of a page."""
        return self._pages(self.path, self.name, query)

    def get(self, id: str) -> Json:
        """How it stands."""
        return self._client._object("GET", f"{self.path}/{id}", repeat=True)

    def cancel(self, id: str) -> Json:
        """Cancel its experiments that have not ended."""
        return self._client._object("POST", f"{self.path}/{id}:cancel")

    def retry(self, id: str, states: Sequence[str] = ("failed",)) -> Json:
        """Queue its experiments in these states (failed, canceled) again."""
        return self._client._object("POST", f"{self.path}/{id}:retry", params={"state": list(states)})

    def delete(self, id: str) -> None:
        """Remove it with its experiments, none of which may run."""
        self._client._call("DELETE", f"{self.path}/{id}")

    def wait(self, id: str, *, on_progress: Callable[[Json], None] | None = None) -> Json:
        """Poll until every experiment has ended."""
        pause = 0.2
        while True:
            found = self.get(id)
            if on_progress:
                on_progress(found)
            if found["status"] in TERMINAL:
                return found
            time.sleep(pause)
            pause = min(pause * 1.3, 5.0)

    def _pages(self, path: str, name: str, query: Json) -> Iterator[Json]:
        page = self._client._object("GET", path, params=query, repeat=True)
        while True:
            yield from page[name]
            if not page["next"]:
                return
            page = self._client._object("GET", page["next"], repeat=True)


class Sweeps(_Many):
    """One base spec and a grid."""

    path, name = "/v1/sweeps", "sweeps"

    def cells(self, id: str, **query: Any) -> Iterator[Json]:
        """Its cells, page by page; ``query``: status, limit."""
        return self._pages(f"{self.path}/{id}/cells", "cells", query)


class Studies(_Many):
    """Attacks x defenses."""

    path, name = "/v1/studies", "studies"

    def extend(self, id: str, more: Spec | Json) -> Json:
        """Add attacks, defenses or seeds; what is there already is left as it is."""
        return self._client._object("POST", f"{self.path}/{id}:extend", json=as_json(more), repeat=True)

    def table(self, id: str) -> Json:
        """Clean accuracy, attack success and defense effectiveness of every attack under every arm."""
        return self._client._object("GET", f"{self.path}/{id}/table", repeat=True)

    def page(self, id: str, format: str) -> str:
        """The table as text: csv, markdown, latex or html."""
        return self._client._call(
            "GET", f"{self.path}/{id}/table", params={"format": format}, repeat=True
        ).text


def as_json(spec: Spec | Json) -> Json:
    """A spec as the service takes it."""
    return spec.model_dump(mode="json") if isinstance(spec, Spec) else spec
